//! `linux.resources` to what is written into a cgroup v2 directory (Documentation/admin-guide/cgroup-v2.rst).
use super::super::cli::Id;
use super::super::error::OciError;
use super::devices;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Where containers are that do not say where they want to be.
pub(in super::super) const OWN: &str = "wherry-oci";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Plan {
    /// Below the root of the hierarchy.
    pub(in super::super) path: PathBuf,
    pub(in super::super) settings: Vec<Setting>,
    /// What decides about devices.
    pub(in super::super) devices: Vec<u64>,
}

impl Plan {
    /// What has to be enabled.
    pub(in super::super) fn controllers(&self) -> BTreeSet<&str> {
        let names = self.settings.iter().filter_map(|setting| setting.file.split_once('.'));
        names.map(|(controller, _)| controller).filter(|name| *name != "cgroup").collect()
    }

    /// Whether it holds anything back.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.devices.is_empty()
    }
}

/// One line for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Setting {
    pub(in super::super) file: String,
    pub(in super::super) value: String,
    /// Whether a kernel without that file can run the container just as well.
    pub(in super::super) optional: bool,
}

fn set(file: &str, value: impl ToString) -> Setting {
    Setting { file: file.into(), value: value.to_string(), optional: false }
}

/// # Errors
/// [`OciError::Config`].
pub(super) fn plan(
    id: &Id,
    path: Option<&Path>,
    resources: Option<&LinuxResources>,
) -> Result<Plan, OciError> {
    let mut plan = Plan { path: place(id, path), settings: Vec::new(), devices: Vec::new() };
    let Some(resources) = resources else { return Ok(plan) };
    plan.devices = devices::program(resources.devices().as_deref().unwrap_or_default())?;
    let list = &mut plan.settings;
    resources.memory().as_ref().map_or(Ok(()), |memory_limits| memory(memory_limits, list))?;
    resources.cpu().as_ref().map_or(Ok(()), |limits| cpu(limits, list))?;
    if let Some(pids) = resources.pids() {
        // 0 is "not set" where programs fill in every field.
        list.push(set("pids.max", bound(if pids.limit() == 0 { -1 } else { pids.limit() })));
    }
    if let Some(io) = resources.block_io() {
        block_io(io, list)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        huge_page(page.page_size(), page.limit(), list)?;
    }
    rdma(resources, list);
    unified(resources, list)?;
    Ok(plan)
}

fn place(id: &Id, path: Option<&Path>) -> PathBuf {
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) if path.is_absolute() => {
            path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
        }
        Some(path) => Path::new(OWN).join(path),
        None => Path::new(OWN).join(id.as_str()),
    }
}

/// A number, or `max` for what is below 0.
fn bound(number: i64) -> String {
    if number < 0 { "max".into() } else { number.to_string() }
}

fn memory(memory: &LinuxMemory, list: &mut Vec<Setting>) -> Result<(), OciError> {
    // 0 is "not set" where programs fill in every field.
    let given = |value: Option<i64>| value.filter(|&value| value != 0);
    let limit = given(memory.limit());
    if let Some(limit) = limit {
        list.push(set("memory.max", bound(limit)));
    }
    if let Some(reservation) = given(memory.reservation()) {
        list.push(set("memory.low", bound(reservation)));
    }
    let Some(both) = given(memory.swap()) else { return Ok(()) };
    // The specification counts memory and swap together, cgroup v2 counts swap alone.
    let swap = match limit {
        _ if both < 0 => -1,
        Some(limit) if limit >= 0 && both >= limit => both - limit,
        Some(_) => {
            return Err(OciError::Config(
                "memory.swap, which counts memory too, is below memory.limit".into(),
            ));
        }
        None => return Err(OciError::Config("memory.swap needs memory.limit".into())),
    };
    // A kernel without swap has no bound for it either.
    list.push(Setting { optional: swap <= 0, ..set("memory.swap.max", bound(swap)) });
    Ok(())
}

/// Shares of the first version, 2 to 262144, to a weight of 1 to 10000 (as runc and crun do it).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn cpu(cpu: &LinuxCpu, list: &mut Vec<Setting>) -> Result<(), OciError> {
    /// Microseconds: the kernel's own default.
    const PERIOD: u64 = 100_000;
    if let Some(idle) = cpu.idle() {
        list.push(set("cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        list.push(set("cpu.weight", weight_of_shares(shares)));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        list.push(set("cpu.max", format!("{} {}", bound(quota.unwrap_or(-1)), period.unwrap_or(PERIOD))));
    }
    if let Some(burst) = cpu.burst().filter(|&burst| burst != 0) {
        if quota.is_some_and(|quota| quota > 0 && u64::try_from(quota).is_ok_and(|quota| quota < burst)) {
            return Err(OciError::Config("cpu.burst is above cpu.quota".into()));
        }
        list.push(set("cpu.max.burst", burst));
    }
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            list.push(set(file, one_line(file, value)?));
        }
    }
    Ok(())
}

fn one_line<'a>(what: &str, text: &'a str) -> Result<&'a str, OciError> {
    if text.contains(['\n', '\0']) {
        Err(OciError::Config(format!("{what} is not one line")))
    } else {
        Ok(text)
    }
}

/// Weights of the first version are 10 to 1000, those of io.weight 1 to 10000.
fn io_weight(weight: u16) -> Result<u64, OciError> {
    match weight {
        10..=1000 => Ok(1 + (u64::from(weight) - 10) * 9999 / 990),
        _ => Err(OciError::Config(format!("blockIO weight {weight} is not between 10 and 1000"))),
    }
}

fn block_io(io: &LinuxBlockIo, list: &mut Vec<Setting>) -> Result<(), OciError> {
    if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
        list.push(set("io.weight", format!("default {}", io_weight(weight)?)));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let (major, minor) = (device.major(), device.minor());
            list.push(set("io.weight", format!("{major}:{minor} {}", io_weight(weight)?)));
        }
    }
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        let line = |device: &oci_spec::runtime::LinuxThrottleDevice| {
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            set("io.max", format!("{}:{} {key}={rate}", device.major(), device.minor()))
        };
        list.extend(devices.iter().flatten().map(line));
    }
    Ok(())
}

fn huge_page(size: &str, limit: i64, list: &mut Vec<Setting>) -> Result<(), OciError> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = size.get(digits.len()..).unwrap_or_default();
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !number || !matches!(unit, "KB" | "MB" | "GB") {
        let shown: String = size.chars().take(40).collect();
        return Err(OciError::Config(format!(
            "hugepageLimits has a page size '{shown}', give one such as 2MB"
        )));
    }
    list.push(set(&format!("hugetlb.{size}.max"), bound(limit)));
    // Older kernels do not count reservations.
    list.push(Setting { optional: true, ..set(&format!("hugetlb.{size}.rsvd.max"), bound(limit)) });
    Ok(())
}

fn rdma(resources: &LinuxResources, list: &mut Vec<Setting>) {
    let number = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
    let mut lines: Vec<Setting> = resources
        .rdma()
        .iter()
        .flatten()
        .map(|(device, limits)| {
            let (handles, objects) = (number(limits.hca_handles()), number(limits.hca_objects()));
            set("rdma.max", format!("{device} hca_handle={handles} hca_object={objects}"))
        })
        .collect();
    lines.sort_by(|a, b| a.value.cmp(&b.value));
    list.extend(lines);
}

/// Files by name. Last, so that they win over what was converted.
fn unified(resources: &LinuxResources, list: &mut Vec<Setting>) -> Result<(), OciError> {
    let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
    entries.sort_unstable();
    for (file, value) in entries {
        let shown: String = file.chars().take(40).collect();
        let name = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !name || file.starts_with('.') || !file.contains('.') {
            return Err(OciError::Config(format!("resources.unified '{shown}' is no file of a cgroup")));
        }
        // Some files take one line at a time.
        list.extend(value.lines().map(|line| set(file, line)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resources: &str) -> Result<Vec<String>, String> {
        let resources: LinuxResources = serde_json::from_str(resources).unwrap();
        let plan =
            plan(&Id::parse("c").unwrap(), None, Some(&resources)).map_err(|error| error.to_string())?;
        Ok(plan.settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect())
    }

    #[test]
    fn resources_become_lines_for_files() {
        for (resources, lines) in [
            (
                r#"{"memory":{"limit":1000,"reservation":500,"swap":1500}}"#,
                "memory.max=1000;memory.low=500;memory.swap.max=500",
            ),
            (r#"{"memory":{"limit":-1,"swap":-1}}"#, "memory.max=max;memory.swap.max=max"),
            (r#"{"memory":{"limit":0}}"#, ""),
            (
                r#"{"cpu":{"shares":1024,"quota":50000,"burst":1000,"cpus":"0-1","mems":"0"}}"#,
                "cpu.weight=39;cpu.max=50000 100000;cpu.max.burst=1000;cpuset.cpus=0-1;cpuset.mems=0",
            ),
            (r#"{"cpu":{"quota":-1,"period":50000,"idle":1}}"#, "cpu.idle=1;cpu.max=max 50000"),
            (r#"{"pids":{"limit":100}}"#, "pids.max=100"),
            (r#"{"pids":{"limit":-1}}"#, "pids.max=max"),
            (
                r#"{"blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":300}]}}"#,
                "io.weight=default 4950;io.max=8:0 rbps=600;io.max=8:16 wiops=300",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                "hugetlb.2MB.max=4194304;hugetlb.2MB.rsvd.max=4194304",
            ),
            (r#"{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#, "rdma.max=mlx5_1 hca_handle=3 hca_object=max"),
            (
                r#"{"pids":{"limit":5},"unified":{"pids.max":"7","io.max":"8:0 rbps=1\n8:16 rbps=2"}}"#,
                "pids.max=5;io.max=8:0 rbps=1;io.max=8:16 rbps=2;pids.max=7",
            ),
        ] {
            assert_eq!(of(resources).unwrap().join(";"), lines, "{resources}");
        }
        assert_eq!((weight_of_shares(0), weight_of_shares(u64::MAX)), (1, 10_000));
    }

    #[test]
    fn nonsense_is_refused() {
        for (resources, says) in [
            (r#"{"memory":{"swap":100}}"#, "needs memory.limit"),
            (r#"{"memory":{"limit":200,"swap":100}}"#, "below memory.limit"),
            (r#"{"cpu":{"quota":10,"burst":20}}"#, "above cpu.quota"),
            (r#"{"cpu":{"cpus":"0\n1"}}"#, "not one line"),
            (r#"{"blockIO":{"weight":5}}"#, "between 10 and 1000"),
            (r#"{"hugepageLimits":[{"pageSize":"../2MB","limit":1}]}"#, "page size"),
            (r#"{"hugepageLimits":[{"pageSize":"2mb","limit":1}]}"#, "page size"),
            (r#"{"unified":{"../pids.max":"1"}}"#, "no file of a cgroup"),
            (r#"{"unified":{"pids/max":"1"}}"#, "no file of a cgroup"),
            (r#"{"unified":{"pids":"1"}}"#, "no file of a cgroup"),
        ] {
            let error = of(resources).unwrap_err();
            assert!(error.contains(says), "{resources}: {error}");
        }
    }

    #[test]
    fn places_are_below_the_hierarchy() {
        let place = |path| super::place(&Id::parse("c").unwrap(), path).display().to_string();
        assert_eq!(place(None), "wherry-oci/c");
        assert_eq!(place(Some(Path::new("/a//b/"))), "a/b");
        assert_eq!(place(Some(Path::new("a/b"))), "wherry-oci/a/b");
        let resources =
            serde_json::from_str(r#"{"pids":{"limit":5},"unified":{"memory.high":"1","cgroup.freeze":"0"}}"#);
        let plan = plan(&Id::parse("c").unwrap(), None, Some(&resources.unwrap())).unwrap();
        assert_eq!(plan.controllers().into_iter().collect::<Vec<_>>(), ["memory", "pids"]);
    }
}
