use super::*;
use std::fmt::Write as _;
use wherry_images::oci::ImageConfig;
use wherry_protocol::message::{ContainerSpec, ImageManifest, Media, Setting, VolumeMount, Want};
use wherry_protocol::{AccountId, ContainerId, ContainerRef, Digest, Generation};

fn desired(spec: ContainerSpec) -> ContainerDesired {
    let config =
        wherry_protocol::message::Descriptor { digest: Digest::of(b""), size: 0, media: Media::Config };
    ContainerDesired {
        container: ContainerRef { id: ContainerId(7), generation: Generation(1) },
        account: AccountId(3),
        name: "web".parse().unwrap(),
        spec,
        image: ImageManifest { config, layers: Vec::new() },
        address: Ipv4Addr::new(10, 2, 0, 5),
        want: Want::Running,
        restarts: 0,
        clean_since: Generation(0),
    }
}

fn make(spec: ContainerSpec, layers: &[PathBuf]) -> Result<Plan, PlanError> {
    let json =
        br#"{"config":{"Env":["PATH=/bin","A=1"],"Entrypoint":["/entry"],"User":"www","WorkingDir":"/srv"}}"#;
    let image = ImageConfig::parse(json).unwrap();
    let base = crate::container::rootfs::DataDir::at(Path::new("/data/node"), Path::new("/run/wherry"));
    let around = Surroundings {
        image: &image,
        layers,
        dir: &base.container(ContainerId(7)),
        nameservers: &[Ipv4Addr::new(9, 9, 9, 9)],
        volumes: &base.volumes_of(AccountId(3)),
        filter: &Filter::compile(),
        devices: &[],
        files: &[],
        first_id: None,
        owns_network: false,
    };
    plan(&desired(spec), &around)
}

/// One line per decision, so that a change of the plan is a change of the golden file.
fn render(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |words: String| writeln!(text, "{words}").unwrap();
    let root = &plan.root;
    root.layers.iter().for_each(|layer| line(format!("layer {}", layer.display())));
    line(format!("upper {}", root.upper.display()));
    line(format!("work {}", root.work.display()));
    line(format!("at {}{}", root.mount_point.display(), if root.read_only { " read-only" } else { "" }));
    for Mount { source, target, flags } in &plan.mounts {
        let source = match source {
            Source::FileSystem(kind, options) => {
                let options: Vec<String> =
                    options.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("{kind} [{}]", options.join(","))
            }
            Source::Directory(path) => format!("directory {}", path.display()),
            Source::Text(text) => format!("text {text:?}"),
        };
        let named = [
            (flags.read_only, "ro"),
            (flags.no_suid, "nosuid"),
            (flags.no_devices, "nodev"),
            (flags.no_exec, "noexec"),
        ];
        let flags: Vec<&str> = named.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        line(format!("mount {target} {source} {}", flags.join(",")));
    }
    plan.devices.iter().for_each(|d| line(format!("device {} {}:{}", d.path, d.major, d.minor)));
    plan.links.iter().for_each(|(path, to)| line(format!("link {path} -> {to}")));
    plan.sysctls.iter().for_each(|sysctl| {
        line(format!(
            "sysctl {} = {}{}",
            sysctl.file,
            sysctl.value,
            if sysctl.required { " or fail" } else { "" }
        ));
    });
    line(format!("mask {}", plan.masked.join(" ")));
    line(format!("protect {}", plan.protected.join(" ")));
    line(format!("hostname {}", plan.hostname));
    let process = &plan.process;
    line(format!("argv {:?}", process.argv));
    process.env.iter().for_each(|(name, value)| line(format!("env {name}={value}")));
    line(format!(
        "workdir {} user '{}' tty {} stop {}",
        process.workdir, process.user, process.tty, process.stop_signal
    ));
    line(format!("capabilities {:#x}", process.capabilities));
    process.limits.iter().for_each(|l| line(format!("limit {:?} {}/{}", l.resource, l.soft, l.hard)));
    text
}

#[test]
fn the_plan_is_as_recorded() {
    let spec = ContainerSpec {
        command: vec!["serve".into()],
        env: vec![("A".into(), "2".into())],
        tty: true,
        read_only: true,
        mounts: vec![VolumeMount {
            volume: "db".parse().unwrap(),
            path: "/var/lib/db".into(),
            read_only: false,
        }],
        settings: vec![
            Setting::StopSignal(3),
            Setting::Tmpfs { path: "/tmp".into(), size_bytes: 4096 },
            Setting::DropCapability("ALL".into()),
            Setting::AddCapability("kill".into()),
            Setting::Limit { name: "nofile".into(), soft: 1, hard: 2 },
            Setting::Sysctl { name: "net.core.somaxconn".into(), value: "5".into() },
        ],
        ..ContainerSpec::default()
    };
    let layers = ["/data/node/layers/aa".into(), "/data/node/layers/bb".into()];
    let text = render(&make(spec, &layers).unwrap());
    assert_eq!(text, include_str!("plan_golden.txt"), "\n{text}");
}

#[test]
fn an_image_without_layers_still_has_a_root() {
    let plan = make(ContainerSpec::default(), &[]).unwrap();
    assert_eq!(plan.root.layers, [PathBuf::from("/data/node/skeleton")]);
}

#[test]
fn a_plan_survives_its_serialisation_and_fits() {
    let spec = ContainerSpec { command: vec!["x".repeat(60_000)], ..ContainerSpec::default() };
    let layers: Vec<PathBuf> =
        (0..limits::MAX_LAYERS).map(|n| format!("/data/node/layers/{n:064x}").into()).collect();
    let plan = make(spec, &layers).unwrap();
    let bytes = postcard::to_stdvec(&plan).unwrap();
    assert!(bytes.len() < MAX_BYTES, "{}", bytes.len());
    assert_eq!(postcard::from_bytes::<Plan>(&bytes).unwrap(), plan);
}

#[test]
fn volumes_stay_where_they_may() {
    for path in
        ["", "relative", "/", "//", "/.", "/a/../b", "/..", "/proc", "/proc/x", "//sys", "/dev/shm", "/a\0b"]
    {
        let mount = VolumeMount { volume: "v".parse().unwrap(), path: path.into(), read_only: false };
        let spec = ContainerSpec { mounts: vec![mount], ..ContainerSpec::default() };
        let error = make(spec, &[]).unwrap_err();
        assert!(matches!(error, PlanError::VolumePath(_)), "{path:?}: {error}");
        assert_eq!(WireError::from(error).code, ErrorCode::Invalid);
    }
    let mount = VolumeMount { volume: "v".parse().unwrap(), path: "/v".into(), read_only: true };
    let spec = ContainerSpec { mounts: vec![mount; MAX_VOLUMES + 1], ..ContainerSpec::default() };
    assert!(matches!(make(spec, &[]), Err(PlanError::TooManyVolumes(65))));
}

#[test]
fn host_names_are_checked() {
    for name in ["", "a b", "ä", &"x".repeat(64)] {
        let spec = ContainerSpec { hostname: Some(name.into()), ..ContainerSpec::default() };
        assert!(matches!(make(spec, &[]), Err(PlanError::Hostname(_))), "{name:?}");
    }
}

#[test]
fn exec_starts_from_the_first_process() {
    let first = make(ContainerSpec::default(), &[]).unwrap().process;
    let spec = ExecSpec {
        command: vec!["sh".into()],
        env: vec![("A".into(), "3".into())],
        user: Some("0".into()),
        tty: Some((24, 80)),
        ..ExecSpec::default()
    };
    let process = exec(&first, &spec).unwrap();
    assert_eq!((process.argv, process.user.as_str(), process.tty), (vec!["sh".to_owned()], "0", true));
    assert_eq!((process.workdir, process.capabilities), (first.workdir.clone(), first.capabilities));
    assert!(
        process.env.contains(&("A".into(), "3".into()))
            && process.env.contains(&("TERM".into(), "xterm".into()))
    );
    let refused = |spec: ExecSpec| exec(&first, &spec).unwrap_err();
    assert!(matches!(refused(ExecSpec::default()), PlanError::Settings(OciError::NoCommand)));
    let relative = ExecSpec { command: vec!["x".into()], workdir: Some("a".into()), ..ExecSpec::default() };
    assert!(matches!(refused(relative), PlanError::Settings(OciError::Setting { .. })));
    let large = ExecSpec { command: vec!["x".repeat(70_000)], ..ExecSpec::default() };
    assert!(matches!(refused(large), PlanError::Settings(OciError::TooLarge { .. })));
}

#[test]
fn generated_files_name_the_container() {
    let files = etc_files("web", Ipv4Addr::new(10, 2, 0, 5), &[Ipv4Addr::new(9, 9, 9, 9)], &[]);
    assert!(files[0].1.ends_with("10.2.0.5\tweb\n"));
    assert_eq!((files[1].1.as_str(), files[2].1.as_str()), ("web\n", "nameserver 9.9.9.9\n"));
}

#[test]
fn every_limit_that_is_granted_is_known() {
    assert_eq!(Resource::ALL.map(Resource::name), policy::LIMITS);
}
