//! What a container must not be able to do, tried from inside as root in it and as somebody else: `support/attempts.c`
//! makes the attempts, the table here says how each must end.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use support::{Finished, World, spec};
use wherry_protocol::message::{ContainerSpec, ExecSpec, Setting, VolumeMount};
use wherry_sys::process::End;

/// A world whose image has the hostile program.
fn world() -> World {
    armed(World::new())
}

fn armed(world: World) -> World {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/attempts.c");
    let program = world.layer().join("bin/attempts");
    let flags = ["-O1", "-Wall", "-Werror", "-static", "-o"];
    let built = Command::new("cc").args(flags).arg(&program).arg(source).status();
    assert!(built.unwrap().success(), "cc failed: install gcc and libc6-dev");
    let copy = |name: &str, mode: u32| {
        let path = world.layer().join("bin").join(name);
        fs::copy(&program, &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    copy("setuid", 0o4755);
    // vfs_cap_data of revision 2 (linux/capability.h): CAP_NET_RAW, permitted and effective.
    let (effective, capabilities) = (0x0200_0001_u32, 1_u32 << 13);
    let value: Vec<u8> =
        [effective, capabilities, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let capable = copy("capable", 0o755);
    rustix::fs::setxattr(&capable, "security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
    world
}

/// `name=ending` words, several of them in one text.
fn table(text: &str) -> BTreeMap<&str, &str> {
    text.split_whitespace().map(|word| word.split_once('=').unwrap()).collect()
}

fn endings(finished: &Finished) -> BTreeMap<&str, &str> {
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
    finished.stdout.lines().map(|line| line.split_once(' ').unwrap()).collect()
}

/// Every line that is not as expected; `a|b` is either.
fn wrong(expected: &BTreeMap<&str, &str>, got: &BTreeMap<&str, &str>) -> Vec<String> {
    let ending = |name: &&str| got.get(*name).copied().unwrap_or("missing");
    let differs = expected.iter().filter(|(name, then)| then.split('|').all(|then| then != ending(name)));
    differs.map(|(name, then)| format!("{name}: should be {then}, is {}", ending(name))).collect()
}

fn attempts(expected: &BTreeMap<&str, &str>) -> ContainerSpec {
    let words: Vec<&str> = std::iter::once("attempts").chain(expected.keys().copied()).collect();
    spec(&words)
}

fn check(
    world: &World,
    expected: &BTreeMap<&str, &str>,
    changed: impl FnOnce(ContainerSpec) -> ContainerSpec,
) {
    let finished = world.start(changed(attempts(expected))).finish();
    let wrong = wrong(expected, &endings(&finished));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Ordinary work: what tells a container that may do nothing at all from one that is confined.
const ALLOWED: &str =
    "makes_directory=done makes_fifo=done asks_time=done makes_thread=done lowers_limit=done
    netlink_socket=done";

/// Refused by the list of system calls.
const FILTERED: &str = "mounts=EPERM mounts_proc=EPERM binds=EPERM remounts_root=EPERM remounts_sys=EPERM
    shares_mounts=EPERM unmounts=EPERM pivots=EPERM changes_root=EPERM escapes_chroot=EPERM opens_file_system=EPERM
    picks_file_system=EPERM configures_file_system=EPERM mounts_opened=EPERM opens_tree=EPERM moves_mount=EPERM
    sets_mount_attributes=EPERM opens_tree_newly=ENOSYS names_handle=EPERM opens_by_handle=EPERM sets_quota=EPERM
    sets_quota_by_fd=EPERM swaps_on=EPERM swaps_off=EPERM watches_everything=EPERM accounts=EPERM
    unshares_mounts=EPERM unshares_users=EPERM unshares_processes=EPERM unshares_network=EPERM unshares_names=EPERM
    unshares_ipc=EPERM unshares_cgroups=EPERM unshares_time=EPERM clones_mounts=EPERM clones_users=EPERM
    clones_processes=EPERM clones_network=EPERM clones_names=EPERM clones_ipc=EPERM clones_cgroups=EPERM
    clones_users_and_mounts=EPERM clones_newly=ENOSYS joins_mounts=EPERM joins_users=EPERM joins_processes=EPERM
    joins_network=EPERM joins_names=EPERM joins_ipc=EPERM joins_cgroups=EPERM
    traces_first=EPERM seizes_first=EPERM lets_trace=EPERM reads_memory=EPERM writes_memory=EPERM
    takes_descriptor=EPERM compares_processes=EPERM moves_pages=EPERM
    loads_bpf=EPERM opens_perf_event=EPERM uses_keys=EPERM adds_key=EPERM requests_key=EPERM sets_up_uring=EPERM
    enters_uring=EPERM registers_uring=EPERM faults_to_user=EPERM hides_memory=EPERM loads_module=EPERM
    loads_module_file=EPERM removes_module=EPERM loads_kernel=EPERM loads_kernel_file=EPERM reads_kernel_log=EPERM
    hangs_up=EPERM sets_host_name=EPERM sets_domain_name=EPERM sets_time=EPERM sets_clock_time=EPERM
    restarts_board=EPERM looks_up_cookie=EPERM serves_nfs=EPERM sets_memory_policy=EPERM
    reads_implies_executes=EPERM compatible_layout=EPERM maps_page_zero=EPERM
    packet_socket=EPERM vsock_socket=EPERM crypto_socket=EPERM bluetooth_socket=EPERM types_for_others=EPERM";

/// Of x86-64 only: old doors.
const OLD_DOORS: [(&str, &str); 8] = [
    ("opens_ports", "EPERM"),
    ("opens_port_range", "EPERM"),
    ("changes_descriptor_table", "EPERM"),
    ("uses_library", "EPERM"),
    ("asks_ustat", "EPERM"),
    ("asks_sysfs", "EPERM"),
    ("calls_x32", "ENOSYS"),
    // SIGSYS: the filter ends programs of another kind.
    ("calls_ia32", "signal 31"),
];

/// Refused for want of a capability, by a mount or by a namespace.
const WITHHELD: &str = "sees_other_processes=ESRCH signals_outside=ESRCH adjusts_clock=EPERM
    makes_block_device=EPERM makes_character_device=EPERM makes_whiteout=EPERM opens_mem=ENOENT opens_kmsg=ENOENT
    opens_proc_kmsg=EACCES reads_kcore=ENODATA|ENOENT reads_keys=ENODATA reads_page_flags=ENODATA reads_page_counts=ENODATA
    reads_page_cgroups=ENODATA reads_allocations=ENODATA
    writes_core_pattern=EACCES writes_host_name=EACCES writes_forwarding=EACCES writes_sysrq=EROFS|ENOENT writes_irq=EACCES
    writes_sys=EACCES writes_uevent=EACCES writes_cgroup=EACCES makes_cgroup=EROFS escapes_killer=EACCES maps_users=EPERM
    writes_first_program=ETXTBSY raw_socket=EPERM takes_link_down=EPERM reads_firewall_tables=EPERM
    audit_socket_use=ECONNREFUSED raises_open_files=EPERM raises_core=EPERM raises_priority=EACCES runs_in_real_time=EPERM
    keeps_capability=EPERM takes_back_promise=EINVAL";

fn everything() -> BTreeMap<&'static str, &'static str> {
    let absent = |(name, ending)| (name, if cfg!(target_arch = "x86_64") { ending } else { "absent" });
    let mut all = table(ALLOWED);
    all.extend(table(FILTERED));
    all.extend(table(WITHHELD));
    all.extend(OLD_DOORS.map(absent));
    all
}

#[test]
fn root_in_a_container_can_do_nothing_to_the_node() {
    check(&world(), &everything(), |spec| spec);
}

/// On a node that has none, because its kernel or disk cannot, the other defences hold alone.
#[test]
fn nor_without_a_user_namespace() {
    let mut expected = everything();
    expected.extend(table(
        "opens_proc_kmsg=EPERM audit_socket_use=EPERM writes_core_pattern=EROFS writes_host_name=EROFS
         writes_forwarding=EROFS writes_irq=EROFS writes_sys=EROFS writes_uevent=EROFS writes_cgroup=EROFS",
    ));
    check(&armed(World::without_user_namespaces()), &expected, |spec| spec);
}

/// And it alone withholds, from root with every capability and without a filter, what would reach beyond the container.
#[test]
fn a_user_namespace_holds_alone() {
    let world = world();
    let expected = table(
        "mounts=EPERM binds=EPERM remounts_root=EPERM remounts_sys=EPERM unmounts=EPERM opens_file_system=EPERM
         opens_tree=EPERM makes_character_device=EPERM raises_priority=EACCES writes_core_pattern=EACCES
         writes_sys=EACCES opens_proc_kmsg=EACCES restarts_board=EPERM
         sets_host_name=done raw_socket=done makes_directory=done",
    );
    let mut plan = world.plan(attempts(&expected));
    plan.process.capabilities = own_capabilities();
    plan.process.filter = allow_everything();
    let finished = world.start_plan(&plan).finish();
    let wrong = wrong(&expected, &endings(&finished));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Nor can a process that is added, whose parent is outside.
#[test]
fn an_added_process_can_do_no_more() {
    let world = world();
    let plan = world.plan(spec(&["sleep", "1000"]));
    let mut running = world.start_plan(&plan);
    running.executed();
    let expected = everything();
    let added = ExecSpec { command: attempts(&expected).command, ..ExecSpec::default() };
    let finished = running.exec(&plan.process, &added).finish();
    running.kill();
    let wrong = wrong(&expected, &endings(&finished));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_attempt_of_the_program_is_in_a_table() {
    let source = include_str!("support/attempts.h");
    let names = source.lines().filter_map(|line| line.strip_prefix("TRY(")?.split(',').next());
    let (mut known, own) = (everything(), ["becomes_root", "runs_setuid_program", "runs_capable_program"]);
    known.extend(own.map(|name| (name, "")));
    for name in names {
        assert!(known.remove(name).is_some(), "{name} is in no table");
    }
    assert!(known.is_empty(), "there is no attempt called {known:?}");
}

#[test]
fn somebody_else_gains_nothing_from_programs_with_privileges() {
    let world = world();
    let expected = table("becomes_root=EPERM runs_setuid_program=EACCES runs_capable_program=EACCES");
    let ann = |spec| ContainerSpec { user: Some("ann".into()), ..spec };
    check(&world, &expected, ann);
    // Nor with every capability that can be had.
    let more = ["AUDIT_WRITE", "IPC_LOCK", "NET_RAW", "SETFCAP"];
    let settings = more.map(|name| Setting::AddCapability(name.into())).to_vec();
    check(&world, &expected, |spec| ContainerSpec { settings, ..ann(spec) });
    // Outside of containers they do give something: the attempt can succeed.
    for name in ["setuid", "capable"] {
        use std::os::unix::process::CommandExt as _;
        let mut program = Command::new(world.layer().join("bin").join(name));
        open_to_all(&world);
        let status = program.arg("--privileged").uid(65534).gid(65534).status().unwrap();
        assert_eq!(status.code(), Some(0), "{name}");
    }
}

/// Somebody else must get to the image's files.
fn open_to_all(world: &World) {
    for directory in world.layer().ancestors().take_while(|path| path.starts_with(world.path())) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// With every capability and without a filter many attempts succeed, so the tables can fail. Only those are made that
/// touch nothing but the container's own namespaces.
#[test]
fn without_the_sandbox_the_same_attempts_succeed() {
    let world = armed(World::without_user_namespaces());
    let expected = table(
        "mounts=done binds=done unmounts=done changes_root=done escapes_chroot=done opens_file_system=done
         opens_tree=done unshares_mounts=done unshares_names=done clones_ipc=done clones_newly=done joins_names=done
         lets_trace=done sets_host_name=done makes_character_device=done raw_socket=done packet_socket=done
         takes_link_down=done reads_firewall_tables=done raises_priority=done reads_implies_executes=done
         compares_processes=done names_handle=done",
    );
    let mut plan = world.plan(attempts(&expected));
    plan.process.capabilities = own_capabilities();
    plan.process.filter = allow_everything();
    let finished = world.start_plan(&plan).finish();
    let wrong = wrong(&expected, &endings(&finished));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// All that this test has itself.
fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// One instruction: BPF_RET, SECCOMP_RET_ALLOW.
fn allow_everything() -> wherry_node::container::seccomp::Filter {
    let bytes = postcard::to_stdvec(&vec![(0x06_u16, 0_u8, 0_u8, 0x7fff_0000_u32)]).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

#[test]
fn an_added_capability_adds_that_and_nothing_else() {
    let world = world();
    let mut expected = everything();
    expected.insert("raw_socket", "done");
    let settings = vec![Setting::AddCapability("NET_RAW".into())];
    check(&world, &expected, |spec| ContainerSpec { settings, ..spec });
}

#[test]
fn a_read_only_root_stays_read_only() {
    let world = world();
    let expected = table("makes_directory=EROFS makes_fifo=EROFS remounts_root=EPERM opens_tree=EPERM");
    check(&world, &expected, |spec| ContainerSpec { read_only: true, ..spec });
}

#[test]
fn no_file_of_the_kernel_opens_for_writing() {
    let world = world();
    let writable = |tree| world.run(&["attempts", "--writable", tree]).stdout;
    assert_eq!(writable("/sys"), "");
    // Pressure: it only asks to be told (a poll(2) on it wakes up), and newer kernels let anybody.
    let proc = writable("/proc");
    let others: Vec<&str> = proc.lines().filter(|path| !path.starts_with("/proc/pressure/")).collect();
    assert_eq!(others, [""; 0]);
    // The walk finds what can be written.
    assert_eq!(writable("/etc").lines().count(), 5, "passwd, group and the three generated files");
}

#[test]
fn only_the_three_streams_are_open() {
    let world = world();
    assert_eq!(world.shell("attempts --open"), "");
    assert_eq!(world.shell("exec 7</etc/passwd; attempts --open"), "7\n");
}

#[test]
fn links_in_a_volume_lead_nowhere_outside() {
    let world = world();
    let at = |volume: &str, path: &str| VolumeMount {
        volume: volume.parse().unwrap(),
        path: path.into(),
        read_only: false,
    };
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let targets = ["/proc/1/root", "/proc/self/root/etc", "../../../../../../..", outside.to_str().unwrap()];
    let links: Vec<String> =
        targets.iter().enumerate().map(|(number, target)| format!("ln -s {target} /v/{number}")).collect();
    let first = ContainerSpec { mounts: vec![at("v", "/v")], ..spec(&["sh", "-c", &links.join(" && ")]) };
    let finished = world.start(first).finish();
    assert_eq!(finished.end, End::Code(0), "{finished:?}");
    // A second container mounts another volume through each link, and writes.
    for number in 0..targets.len() {
        let mounts = vec![at("v", "/v"), at("w", &format!("/v/{number}/inside"))];
        let finished =
            world.start(ContainerSpec { mounts, ..spec(&["sh", "-c", "echo x > /v/mine; ls /"]) }).finish();
        let refused = finished.end == End::Code(127);
        assert!(refused || finished.stdout.contains("inside"), "{number}: {finished:?}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/inside").exists() && !Path::new("/etc/inside").exists());
}
