//! `make demo`: boots a cluster of real images in virtual machines and tells its story with the real `wherry` command.
//! Ends with 0 only if every step came out right; cleans up however it ends.
mod show;
mod story;

use show::Show;
use std::process::ExitCode;
use story::{Cleanup, Story};
use tokio::signal::unix::{SignalKind, signal};
use wherry_images::disk::Arch;
use wherry_tests::{Failure, Wherry, given};

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Failure::io("start")(error)),
    };
    let code = runtime.block_on(demo());
    // After an interruption the story's thread is still in a command that is about to fail; nobody waits for it.
    runtime.shutdown_background();
    code
}

async fn demo() -> ExitCode {
    let (story, cleanup) = match parse_arch().and_then(prepare) {
        Ok(both) => both,
        Err(failure) => return failed(&failure),
    };
    let told = tokio::task::spawn_blocking(move || story.tell());
    let result = tokio::select! {
        result = told => result.unwrap_or_else(|panic| Err(Failure::Unexpected(panic.to_string()))),
        () = interrupted() => Err(Failure::Unexpected("interrupted".into())),
    };
    let consoles = result.as_ref().err().map(|_| cleanup.consoles());
    if let Err(failure) = cleanup.run() {
        eprintln!("demo: could not clean up: {failure}");
    }
    match (result, consoles) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(failure), consoles) => {
            eprintln!("{}", consoles.unwrap_or_default());
            failed(&failure)
        }
    }
}

fn failed(failure: &Failure) -> ExitCode {
    eprintln!("demo: {failure}");
    ExitCode::FAILURE
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end us at once, which needs no waiting.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn parse_arch() -> Result<Arch, Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => given::host_arch(),
        ["--arch", "x86_64"] => Ok(Arch::X86_64),
        ["--arch", "aarch64"] => Ok(Arch::Aarch64),
        _ => Err(Failure::Unexpected("the usage is: demo [--arch x86_64|aarch64]".into())),
    }
}

fn prepare(arch: Arch) -> Result<(Story, Cleanup), Failure> {
    let home = tempfile::tempdir().map_err(Failure::io("make a temporary directory"))?;
    let cli = Wherry::new(given::wherry()?, home.path().to_owned());
    let story = Story::new(Show::new(cli), arch, given::artifacts()?, home.path().to_owned());
    let cleanup = story.cleanup(home);
    Ok((story, cleanup))
}
