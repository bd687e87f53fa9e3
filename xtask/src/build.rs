//! The boards' static binaries.
use std::fs;
use std::path::{Path, PathBuf};

use wherry_images::disk::{Arch, BoardRole};

use crate::error::TaskError;
use crate::project::{Project, make_dir, mebibytes};
use crate::{elf, exec, toolchain};

/// design.md's budget for each.
const BUDGET_BYTES: u64 = 8 << 20;

/// The package and program of a role.
pub(crate) const fn program(role: BoardRole) -> &'static str {
    match role {
        BoardRole::Broker => "wherry-broker",
        BoardRole::Node => "wherry-node",
    }
}

/// Builds both programs for `arch` and puts them into `bin/` of its output; that directory.
pub(crate) fn run(project: &Project, arch: Arch) -> Result<PathBuf, TaskError> {
    let roles = [BoardRole::Broker, BoardRole::Node];
    let mut cargo = toolchain::cargo(project, arch, "build")?;
    // Without what is for hosts alone (docs/decisions/0011).
    cargo
        .args(["--release", "--no-default-features"])
        .args(roles.iter().flat_map(|role| ["--package", program(*role)]));
    exec::watched(&mut cargo)?;
    let from = toolchain::target_dir(project, arch).join(toolchain::target(arch)).join("release");
    let bin = project.output(arch).join("bin");
    make_dir(&bin)?;
    for role in roles {
        let bytes = place(&from.join(program(role)), &bin.join(program(role)))?;
        let over = if bytes > BUDGET_BYTES {
            format!(", over the budget of {}", mebibytes(BUDGET_BYTES))
        } else {
            String::new()
        };
        println!("{:13} {} {}{over}", program(role), arch.name(), mebibytes(bytes));
    }
    Ok(bin)
}

/// Copies a program that is really static; its size.
fn place(from: &Path, to: &Path) -> Result<u64, TaskError> {
    let content = fs::read(from).map_err(TaskError::io("read", from))?;
    elf::refuse_dynamic(&content)
        .map_err(|reason| TaskError::Say(format!("{} is not a static program: {reason}", from.display())))?;
    // A running copy must not be written into; a new file takes its name.
    let partial = to.with_extension("partial");
    fs::copy(from, &partial).map_err(TaskError::io("create", &partial))?;
    fs::rename(&partial, to).map_err(TaskError::io("create", to))?;
    Ok(content.len() as u64)
}
