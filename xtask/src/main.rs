//! Developer tasks. Each installs or builds what it needs, says what it does, and does nothing twice.
//!
//! ```text
//! project    where things are: repository, build output, cache
//! exec       running programs; error  what goes wrong
//! setup      what must be installed; debs  Debian packages without installing them
//! toolchain  which compiler builds for which processor: decided here and nowhere else
//! kernel     kernels from Debian's source package, cached by what they are made from
//! build      the static binaries; elf  the check that they are static
//! images     templates of disk images
//! fixtures   container images for demo and tests; oci  their format; layer  their layers
//! programs   images of servers and languages that people run, for the tests of containers
//! suites     demo, tests and benchmarks, started with everything they need; fuzz  a short run of each fuzz target
//! ```
mod build;
mod debs;
mod elf;
mod error;
mod exec;
mod fixtures;
mod fuzz;
mod images;
mod kernel;
mod layer;
mod oci;
mod programs;
mod project;
mod setup;
mod suites;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wherry_images::disk::Arch;

use crate::error::{TaskError, chain};
use crate::project::Project;

/// Developer tasks of Wherry.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing on this machine; says nothing when nothing is
    Setup,
    /// Build the kernel, unless the cache has it
    Kernel {
        /// Processor: x86_64 or aarch64
        #[arg(long, value_parser = parse_arch, default_value = project::HOST_ARCH)]
        arch: Arch,
        /// Print the cache directory of this kernel, and build nothing
        #[arg(long)]
        path: bool,
    },
    /// Build the boards' static binaries
    Build {
        /// Processor: x86_64 or aarch64
        #[arg(long, value_parser = parse_arch, default_value = project::HOST_ARCH)]
        arch: Arch,
    },
    /// Build the disk images of both roles
    Images {
        /// Processor: x86_64 or aarch64
        #[arg(long, value_parser = parse_arch, default_value = project::HOST_ARCH)]
        arch: Arch,
    },
    /// Assemble one disk image from ready-made parts, as Buildroot's post-image step does
    Assemble(images::AssembleArguments),
    /// Build the container images that demo and tests push
    Fixtures {
        /// Processor: x86_64 or aarch64
        #[arg(long, value_parser = parse_arch, default_value = project::HOST_ARCH)]
        arch: Arch,
    },
    /// Boot a cluster in QEMU and tell the story
    Demo {
        /// Processor: x86_64 or aarch64
        #[arg(long, value_parser = parse_arch, default_value = project::HOST_ARCH)]
        arch: Arch,
    },
    /// Run every test tier
    Test {
        /// Arguments for `cargo test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Measure
    Bench {
        /// Which: session, container_start, container_load, container_data, rules, endpoint, sizes, machines, link, namespaces,
        /// mesh; all of them otherwise
        parts: Vec<String>,
    },
    /// Run every fuzz target, where there is a nightly compiler
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = fuzz::SMOKE_SECONDS)]
        seconds: u32,
    },
    /// Check dependencies: bans, licences, sources
    Deny,
}

fn parse_arch(text: &str) -> Result<Arch, String> {
    [Arch::X86_64, Arch::Aarch64]
        .into_iter()
        .find(|arch| arch.name() == text)
        .ok_or_else(|| "choose x86_64 or aarch64".to_owned())
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<(), TaskError> {
    let project = Project::find()?;
    match task {
        Task::Setup => setup::run(&project),
        Task::Kernel { arch, path: true } => kernel::print_path(&project, arch),
        Task::Kernel { arch, path: false } => kernel::ensure(&project, arch).map(|_| ()),
        Task::Build { arch } => build::run(&project, arch).map(|_| ()),
        Task::Images { arch } => images::run(&project, arch),
        Task::Assemble(arguments) => images::assemble_one(&arguments),
        Task::Fixtures { arch } => {
            fixtures::run(&project, arch)?;
            programs::run(&project, arch)
        }
        Task::Demo { arch } => suites::demo(&project, arch),
        Task::Test { arguments } => suites::test(&project, &arguments),
        Task::Bench { parts } => suites::bench(&project, &parts),
        Task::Fuzz { seconds } => fuzz::run(&project, seconds),
        Task::Deny => suites::deny(&project),
    }
}
