//! What matters about the machine that QEMU runs on.
use std::fmt;
use std::fs;

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The host's processor runs them (linux KVM).
    Kvm,
    /// QEMU translates them.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

/// Facts about the host that reach a guest's command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Host {
    /// Rate of the processor's time stamp counter, in kHz, where it is known.
    pub tsc_khz: Option<u32>,
}

impl Host {
    /// Reads this machine's facts.
    #[must_use]
    pub fn detect() -> Self {
        let cpu = "/sys/devices/system/cpu/cpu0";
        let number = |path: String| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
        // Intel's base frequency (kHz) and ACPI CPPC's nominal frequency (MHz) are the counter's rate on bare metal.
        let nominal = number(format!("{cpu}/cpufreq/base_frequency")).or_else(|| {
            number(format!("{cpu}/acpi_cppc/nominal_freq")).and_then(|mhz| mhz.checked_mul(1000))
        });
        let tsc_khz =
            nominal.or_else(|| virtual_tsc_khz(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
        Self { tsc_khz }
    }
}

/// Inside a virtual machine "cpu MHz" of /proc/cpuinfo is the counter's rate; on bare metal it is the present clock
/// of a core, which changes all the time, so it says nothing there.
fn virtual_tsc_khz(cpuinfo: &str) -> Option<u32> {
    let value = |name: &str| {
        cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, v)| v)
    };
    let is_virtual = value("flags")?.split_whitespace().any(|flag| flag == "hypervisor");
    let (whole, fraction) = value("cpu MHz")?.trim().split_once('.')?;
    let khz = whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(fraction.get(..3)?.parse().ok()?)?;
    is_virtual.then_some(khz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_a_virtual_cpu_is_read() {
        let text = "processor\t: 0\ncpu MHz\t\t: 2596.122\nflags\t\t: fpu tsc hypervisor lahf_lm\n";
        assert_eq!(virtual_tsc_khz(text), Some(2_596_122));
    }

    #[test]
    fn the_momentary_clock_of_a_real_cpu_is_not_believed() {
        assert_eq!(virtual_tsc_khz("cpu MHz\t: 800.012\nflags\t: fpu tsc\n"), None);
        for odd in
            ["", "cpu MHz : x.y\nflags : hypervisor\n", "cpu MHz : 9999999999.000\nflags : hypervisor\n"]
        {
            assert_eq!(virtual_tsc_khz(odd), None);
        }
    }
}
