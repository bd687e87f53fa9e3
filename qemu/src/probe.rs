//! Does KVM really work here? /dev/kvm may exist and yet no guest survive on it (nested virtualisation), so the
//! question is put by booting the very kernel that is to run.
use crate::host::{Accelerator, Host};
use crate::machine::{Arch, Machine};
use crate::running::Running;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::Mutex;

/// Environment variable that decides instead of a trial: `kvm` or `tcg`.
pub const ACCELERATOR_VARIABLE: &str = "WHERRY_ACCELERATOR";

/// How long the trial may take. A kernel without a root file system comes to its end within 0.3 s under KVM.
const TRIAL: Duration = Duration::from_secs(4);

/// What a kernel says when it has initialised all it has and finds no root file system: as far as it can come.
const CAME_TO_ITS_END: &str = "Unable to mount root fs";

/// The accelerator to use for guests of `arch` with this kernel. The first call for a kernel may take [`TRIAL`]; the
/// answer is remembered for the life of the process.
pub async fn accelerator_for(arch: Arch, kernel: &Path) -> Accelerator {
    static KNOWN: OnceLock<Mutex<HashMap<(Arch, PathBuf), Accelerator>>> = OnceLock::new();
    let choice = std::env::var(ACCELERATOR_VARIABLE).unwrap_or_default();
    if let Some(accelerator) = without_trial(arch, &choice, Arch::of_this_host(), kvm_opens()) {
        return accelerator;
    }
    // Held across the trial on purpose: several machines that start at once share one.
    let mut known = KNOWN.get_or_init(Mutex::default).lock().await;
    if let Some(accelerator) = known.get(&(arch, kernel.to_owned())) {
        return *accelerator;
    }
    let accelerator = if trial(arch, kernel).await { Accelerator::Kvm } else { Accelerator::Tcg };
    tracing::debug!(%arch, %accelerator, "decided how to run guests");
    known.insert((arch, kernel.to_owned()), accelerator);
    accelerator
}

fn kvm_opens() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The answer where no trial is needed.
fn without_trial(arch: Arch, choice: &str, host: Option<Arch>, kvm_opens: bool) -> Option<Accelerator> {
    match choice {
        "tcg" => Some(Accelerator::Tcg),
        "kvm" => Some(Accelerator::Kvm),
        _ => (host != Some(arch) || !kvm_opens).then_some(Accelerator::Tcg),
    }
}

async fn trial(arch: Arch, kernel: &Path) -> bool {
    let console = std::env::temp_dir().join(format!("wherry-kvm-trial-{}.console", std::process::id()));
    let machine = Machine {
        name: "kvm-trial".into(),
        arch,
        cpus: 1,
        memory_mib: 96,
        kernel: kernel.to_owned(),
        initrd: None,
        append: String::new(),
        disks: Vec::new(),
        nics: Vec::new(),
        console: console.clone(),
    };
    let works = match Running::start(&machine, Accelerator::Kvm, &Host::detect()).await {
        Ok(mut running) => running.expect(CAME_TO_ITS_END, TRIAL).await.is_ok(),
        Err(_) => false,
    };
    // It may never have been made; a file left behind in the temporary directory does no harm.
    drop(std::fs::remove_file(&console));
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_guests_are_translated_and_the_user_may_decide() {
        use Accelerator::{Kvm, Tcg};
        let x86 = Some(Arch::X86_64);
        for (arch, choice, kvm_opens, answer) in [
            (Arch::Aarch64, "", true, Some(Tcg)),
            (Arch::X86_64, "", false, Some(Tcg)),
            (Arch::X86_64, "", true, None),
            (Arch::X86_64, "tcg", true, Some(Tcg)),
            (Arch::X86_64, "kvm", false, Some(Kvm)),
        ] {
            assert_eq!(without_trial(arch, choice, x86, kvm_opens), answer, "{arch} {choice} {kvm_opens}");
        }
    }
}
