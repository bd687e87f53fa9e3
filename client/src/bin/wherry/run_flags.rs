//! The flags of `run`, and the request they make.
use crate::boot_files::{self, BootFile};
use crate::context::CliError;
use crate::probe_flags::Health;
use crate::{parse, signals};
use clap::Args;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use wherry_client::ImageSelector;
use wherry_protocol::limits::MAX_ARGUMENT_BYTES;
use wherry_protocol::message::{
    ContainerSpec, ImageName, PublishedPort, Resources, RestartPolicy, RunRequest, Setting, VolumeMount,
};
use wherry_protocol::{Constraint, Name, policy};

/// Largest environment file, in bytes: no larger environment would be accepted.
const MAX_ENV_FILE_BYTES: u64 = MAX_ARGUMENT_BYTES as u64;

/// Where variables come from: the same for `run` and `exec`.
#[derive(Debug, Default, Args)]
pub(crate) struct Environment {
    /// Set a variable: NAME=value, or NAME to pass on this shell's.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file, one per line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl Environment {
    /// Files first, so that single variables win.
    pub(crate) fn variables(&self) -> Result<Vec<(String, String)>, CliError> {
        let mut variables = Vec::new();
        for path in &self.env_file {
            let shown = path.display();
            let text =
                read_small(path).map_err(|error| CliError::Usage(format!("cannot read {shown}: {error}")))?;
            variables.extend(
                parse::env_file(&text).map_err(|error| CliError::Usage(format!("{shown}, {error}")))?,
            );
        }
        for text in &self.env {
            variables.extend(parse::env(text).map_err(CliError::Usage)?);
        }
        Ok(variables)
    }
}

fn read_small(path: &Path) -> Result<String, std::io::Error> {
    match path.metadata()?.len() {
        0..=MAX_ENV_FILE_BYTES => std::fs::read_to_string(path),
        _ => Err(std::io::Error::other("it is too large for an environment")),
    }
}

/// `wherry run`
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Leave it running and print its id.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Send standard input to it.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    environment: Environment,
    /// Mount a named volume: name:/path or name:/path:ro.
    #[arg(short, long = "volume", value_name = "NAME:PATH", value_parser = parse::volume)]
    volumes: Vec<VolumeMount>,
    /// Publish a port of the broker, or of the node that it runs on: [node:]port:container-port[/udp], then ,proxy (say first
    /// who connects, PROXY protocol v2) and ,allow=network (only from there) as wished.
    #[arg(short, long, value_name = "[node:]PORT:PORT[/udp][,…]", value_parser = parse::publish)]
    publish: Vec<PublishedPort>,
    /// Its name; one is made up otherwise.
    #[arg(long)]
    name: Option<Name>,
    /// Remove it when it ends.
    #[arg(long)]
    pub(crate) rm: bool,
    /// Run it on this node; on the one with most room otherwise.
    #[arg(long)]
    node: Option<String>,
    /// Working directory.
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// User, and group: names or numbers.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Program to run instead of the image's entrypoint.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Host name inside; its name otherwise.
    #[arg(long)]
    hostname: Option<String>,
    /// Mount its root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Memory it may use, as in 64m.
    #[arg(short, long, value_name = "SIZE", value_parser = parse::size)]
    memory: Option<u64>,
    /// CPUs it may use, as in 0.5.
    #[arg(long, value_name = "NUMBER", value_parser = parse::cpus)]
    cpus: Option<u32>,
    /// Processes and threads it may have.
    #[arg(long, value_name = "NUMBER", value_parser = parse::processes)]
    pids_limit: Option<u32>,
    /// Start it again when it ends by itself: no, on-failure[:most], always, unless-stopped.
    #[arg(long, value_name = "POLICY", value_parser = parse::restart)]
    restart: Option<RestartPolicy>,
    /// Signal that asks it to stop; the image's otherwise, or TERM.
    #[arg(long, value_name = "SIGNAL", value_parser = signals::parse)]
    stop_signal: Option<u8>,
    /// Seconds from that signal to KILL; 10 otherwise.
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    stop_timeout: Option<u16>,
    /// Mount an empty file system in memory: /path or /path:size=64m.
    #[arg(long, value_name = "PATH[:size=SIZE]", value_parser = parse::tmpfs)]
    tmpfs: Vec<Setting>,
    /// Give it a capability beyond the usual ones.
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a usual capability away, or ALL of them.
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Set a resource limit: name=soft[:hard], as in nofile=1024:4096.
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse::ulimit)]
    ulimit: Vec<Setting>,
    /// Set a kernel parameter of its own: net.core.somaxconn=1024.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::sysctl)]
    sysctl: Vec<Setting>,
    /// Ask this name server instead of the board's.
    #[arg(long, value_name = "ADDRESS", value_parser = parse::address)]
    dns: Vec<Ipv4Addr>,
    /// Where it may send outside the cluster: none, internet, or lan:NETWORK of the boards (admins only); internet otherwise.
    #[arg(long, value_name = "WHERE", value_parser = parse::egress)]
    egress: Vec<Setting>,
    /// Add a line to its /etc/hosts: name:address.
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = parse::host)]
    add_host: Vec<Setting>,
    /// Put a file or directory of this computer into it, before it starts: file:/path. As often as it starts.
    #[arg(short, long = "file", value_name = "FILE:PATH", value_parser = boot_files::parse)]
    pub(crate) files: Vec<BootFile>,
    /// Give it a device of the board (admins only): /dev/name, or /dev/name:/dev/name-inside.
    #[arg(long, value_name = "DEVICE[:PATH]", value_parser = parse::device)]
    device: Vec<Setting>,
    /// Run it only on nodes that are so: node.hostname, node.id, node.platform.arch or node.labels.NAME, then == or !=.
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<Constraint>,
    /// Let a small init be its first process, which passes signals on and reaps orphans.
    #[arg(long)]
    init: bool,
    /// Set everything up, but start its program only at `wherry wake`.
    #[arg(long)]
    asleep: bool,
    #[command(flatten)]
    health: Health,
    /// Attach a label: key=value.
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::label)]
    labels: Vec<(String, String)>,
    /// Image, then the command and its arguments; the image's command otherwise.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "COMMAND"])]
    image_and_command: Vec<String>,
}

impl Run {
    fn settings(&self) -> Vec<Setting> {
        let single = [
            self.restart.map(Setting::Restart),
            self.stop_signal.map(Setting::StopSignal),
            self.stop_timeout.map(Setting::StopSeconds),
        ];
        let lists = [&self.tmpfs, &self.ulimit, &self.sysctl, &self.add_host, &self.device, &self.egress];
        let lists = lists.into_iter().flatten().cloned();
        let constraints = self.constraint.iter().cloned().map(Setting::Constraint);
        let switches = [
            self.init.then_some(Setting::Init),
            self.asleep.then_some(Setting::Asleep),
            self.health.setting(),
        ];
        let dropped = self.cap_drop.iter().cloned().map(Setting::DropCapability);
        let added = self.cap_add.iter().cloned().map(Setting::AddCapability);
        let attended = (!self.detach).then_some(Setting::Attended);
        let servers = self.dns.iter().copied().map(Setting::Nameserver);
        attended
            .into_iter()
            .chain(single.into_iter().flatten())
            .chain(lists)
            .chain(dropped)
            .chain(added)
            .chain(servers)
            .chain(constraints)
            .chain(switches.into_iter().flatten())
            .collect()
    }

    /// Which image.
    pub(crate) fn image(&self) -> Result<ImageSelector, CliError> {
        let image = self.image_and_command.first().ok_or_else(|| CliError::Usage("no image".into()))?;
        image.parse().map_err(|error| CliError::Usage(format!("{error}")))
    }

    /// What to ask the broker for, with `image` for the image that is meant.
    pub(crate) fn request(&self, image: ImageName) -> Result<RunRequest, CliError> {
        let usage = |text: String| CliError::Usage(text);
        let command = self.image_and_command.get(1..).unwrap_or_default();
        parse::volumes_apart(&self.volumes).map_err(usage)?;
        let mut ports: Vec<_> =
            self.publish.iter().map(|published| (published.on, published.key())).collect();
        ports.sort_unstable();
        if let Some(twice) =
            ports.windows(2).find_map(|pair| (pair.first() == pair.last()).then(|| pair.first()))
        {
            return Err(usage(format!(
                "port {} is published twice",
                twice.map_or(0, |(_, (_, port))| *port)
            )));
        }
        if let Some(workdir) = self.workdir.as_ref().filter(|path| !path.starts_with('/')) {
            return Err(usage(format!("the working directory '{workdir}' is not absolute")));
        }
        let spec = ContainerSpec {
            // As with docker, an empty one drops the image's.
            entrypoint: self.entrypoint.as_ref().map(|program| {
                Some(program.clone()).filter(|program| !program.is_empty()).into_iter().collect()
            }),
            command: command.to_vec(),
            env: self.environment.variables()?,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            tty: self.tty,
            stdin_open: self.interactive,
            read_only: self.read_only,
            mounts: self.volumes.clone(),
            publish: self.publish.clone(),
            resources: Resources { memory_bytes: self.memory, cpu_milli: self.cpus, pids: self.pids_limit },
            // In the foreground we remove it ourselves, once its last output and exit code have been read.
            auto_remove: self.rm && self.detach,
            labels: self.labels.clone(),
            settings: self.settings(),
        };
        boot_files::check(&self.files, &spec).map_err(usage)?;
        // The broker says the same, but only after a session has been made.
        policy::check(&spec).map_err(|refused| usage(refused.to_string()))?;
        if self.rm && spec.restart() != RestartPolicy::No {
            return Err(usage("--rm and --restart do not go together: choose one of both".into()));
        }
        let (name, node, detached) = (self.name.clone(), self.node.clone(), self.detach);
        Ok(RunRequest { image, name, node, detached, spec })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use wherry_protocol::message::{HealthCheck, OnUnhealthy, Probe};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn request(line: &str) -> Result<RunRequest, String> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let name = match line.run.image().map_err(|error| error.to_string())? {
            ImageSelector::Name(name) => name,
            other => return Err(format!("{other} is no name")),
        };
        line.run.request(name).map_err(|error| error.to_string())
    }

    fn golden(line: &str, change: impl FnOnce(&mut RunRequest)) {
        let mut expected = RunRequest {
            image: "web:latest".parse().unwrap(),
            name: None,
            node: None,
            detached: false,
            spec: ContainerSpec::default(),
        };
        change(&mut expected);
        if !expected.detached {
            expected.spec.settings.insert(0, Setting::Attended);
        }
        assert_eq!(request(line).unwrap(), expected, "{line}");
    }

    fn health(probe: Option<Probe>) -> HealthCheck {
        HealthCheck {
            probe,
            interval_ms: None,
            timeout_ms: None,
            retries: None,
            start_period_ms: None,
            start_interval_ms: None,
            on_failure: OnUnhealthy::Tell,
        }
    }

    #[test]
    fn flags_become_a_request() {
        golden("web", |_| {});
        golden("-d web", |r| r.detached = true);
        golden("-it web sh", |r| {
            r.spec.stdin_open = true;
            r.spec.tty = true;
            r.spec.command = vec!["sh".into()];
        });
        golden("--name front --node node2 web:1.2", |r| {
            r.image = "web:1.2".parse().unwrap();
            r.name = Some("front".parse().unwrap());
            r.node = Some("node2".into());
        });
        golden("-e A=1 --env B=x=y web", |r| {
            r.spec.env = vec![("A".into(), "1".into()), ("B".into(), "x=y".into())];
        });
        golden("-v data:/srv:ro -p 8080:80 web", |r| {
            r.spec.mounts =
                vec![VolumeMount { volume: "data".parse().unwrap(), path: "/srv".into(), read_only: true }];
            r.spec.publish = vec![PublishedPort::tcp(8080, 80)];
        });
        golden("-w /srv -u 1000:100 --entrypoint /bin/x --hostname h --read-only web", |r| {
            r.spec.workdir = Some("/srv".into());
            r.spec.user = Some("1000:100".into());
            r.spec.entrypoint = Some(vec!["/bin/x".into()]);
            r.spec.hostname = Some("h".into());
            r.spec.read_only = true;
        });
        golden("--entrypoint= web", |r| r.spec.entrypoint = Some(Vec::new()));
        golden("--memory 64m --cpus 0.5 --pids-limit 20 -l a=b web", |r| {
            r.spec.resources =
                Resources { memory_bytes: Some(64 << 20), cpu_milli: Some(500), pids: Some(20) };
            r.spec.labels = vec![("a".into(), "b".into())];
        });
        golden("--restart on-failure:3 --stop-signal INT --stop-timeout 30 web", |r| {
            r.spec.settings = vec![
                Setting::Restart(RestartPolicy::OnFailure { most: Some(3) }),
                Setting::StopSignal(2),
                Setting::StopSeconds(30),
            ];
        });
        golden("--restart unless-stopped --cap-drop ALL --cap-add net_raw web", |r| {
            r.spec.settings = vec![
                Setting::Restart(RestartPolicy::Always),
                Setting::DropCapability("ALL".into()),
                Setting::AddCapability("net_raw".into()),
            ];
        });
        golden(
            "--tmpfs /a --tmpfs /b:size=1m --ulimit nofile=5:unlimited --sysctl net.core.somaxconn=9 web",
            |r| {
                r.spec.settings = vec![
                    Setting::Tmpfs { path: "/a".into(), size_bytes: 64 << 20 },
                    Setting::Tmpfs { path: "/b".into(), size_bytes: 1 << 20 },
                    Setting::Limit { name: "nofile".into(), soft: 5, hard: u64::MAX },
                    Setting::Sysctl { name: "net.core.somaxconn".into(), value: "9".into() },
                ];
            },
        );
        golden("--dns 9.9.9.9 --add-host db:10.2.0.2 web", |r| {
            let address = Ipv4Addr::new(10, 2, 0, 2);
            r.spec.settings = vec![
                Setting::Host { name: "db".into(), address },
                Setting::Nameserver(Ipv4Addr::new(9, 9, 9, 9)),
            ];
        });
        golden("--rm web", |_| {});
        golden("-d --rm web", |r| {
            r.detached = true;
            r.spec.auto_remove = true;
        });
    }

    #[test]
    fn flags_of_a_container_s_life_become_a_request() {
        golden("--init --asleep --device /dev/ttyUSB0:/dev/modem web", |r| {
            let device = Setting::Device { device: "/dev/ttyUSB0".into(), path: "/dev/modem".into() };
            r.spec.settings = vec![device, Setting::Init, Setting::Asleep];
        });
        golden("--constraint node.labels.shelf!=top --constraint node.platform.arch==arm64 web", |r| {
            let constraint = |text: &str| Setting::Constraint(text.parse().unwrap());
            r.spec.settings =
                vec![constraint("node.labels.shelf!=top"), constraint("node.platform.arch==arm64")];
        });
        golden("--health-tcp 80 --health-interval 5s --health-on-failure kill web", |r| {
            r.spec.settings = vec![Setting::Health(HealthCheck {
                interval_ms: Some(5000),
                on_failure: OnUnhealthy::Kill,
                ..health(Some(Probe::Tcp { port: 80 }))
            })];
        });
        golden("--health-retries 5 web", |r| {
            r.spec.settings = vec![Setting::Health(HealthCheck { retries: Some(5), ..health(None) })];
        });
        golden("--no-healthcheck web", |r| r.spec.settings = vec![Setting::NoHealth]);
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        golden("web ls -l --name -d", |r| {
            r.spec.command = ["ls", "-l", "--name", "-d"].map(String::from).to_vec();
        });
        golden("web -d", |r| r.spec.command = vec!["-d".into()]);
    }

    #[test]
    fn mistakes_are_explained() {
        for (line, words) in [
            ("", "required"),
            ("Web", "'Web' names no image"),
            ("--memory lots web", "not a size"),
            ("--cpus 0 web", "not a number of CPUs"),
            ("--pids-limit 0 web", "not a number of processes"),
            ("-v /etc:/etc web", "only named volumes"),
            ("-v a:/x -v b:/x/y web", "overlap"),
            ("-p 80 web", "not a published port"),
            ("-p 80:80 -p 80:81 web", "port 80 is published twice"),
            ("-w srv web", "not absolute"),
            ("-e =x web", "not a variable"),
            ("--name Bad! web", "not a valid name"),
            ("--env-file /nowhere/env web", "cannot read /nowhere/env"),
            ("--restart sometimes web", "not a restart policy"),
            ("--restart on-failure:0 web", "not a restart policy"),
            ("--restart always --rm web", "do not go together"),
            ("--stop-signal NONE web", "NONE"),
            ("--stop-timeout 4000 web", "not a number of seconds"),
            ("--tmpfs tmp web", "absolute path"),
            ("--tmpfs /tmp:noexec web", "not a place in memory"),
            ("--cap-add SYS_ADMIN web", "cannot be had"),
            ("--cap-drop FLY web", "no capability"),
            ("--ulimit nofile web", "not a limit"),
            ("--ulimit files=1 web", "no limit called 'files'"),
            ("--ulimit nofile=2:1 web", "may be at most 1"),
            ("--sysctl kernel.core_pattern=x web", "cannot be set for one container"),
            ("--sysctl net.core.somaxconn web", "not a kernel parameter"),
            ("--dns nine web", "nine"),
            ("--add-host db web", "not a host"),
            ("--device ttyUSB0 web", "not a device"),
            ("--device /dev/sda web", "cannot be had"),
            ("--device /dev/ttyUSB0:/etc/x web", "below /dev"),
            ("--constraint shelf==top web", "not a constraint"),
            ("--constraint node.labels.shelf=top web", "not a constraint"),
            ("-f nothing web", "not a file for a container"),
            ("-f a:/srv/a -v data:/srv web", "would be hidden"),
            ("-f a:/proc/a web", "not on the container's disk"),
            ("--health-cmd [] web", "not an array"),
            ("--health-interval often web", "not a time"),
            ("--health-interval 1ms --health-tcp 80 web", "100 ms to a day"),
            ("--health-retries 0 --health-tcp 80 web", "1 to 1000"),
            ("--health-retries many web", "many"),
            ("--health-http 80:x web", "not a port and a path"),
            ("--health-tcp 0 web", "0 is not in"),
            ("--health-tcp 80 --health-http 80 web", "cannot be used with"),
            ("--no-healthcheck --health-tcp 80 web", "cannot be used with"),
            ("--health-on-failure restart web", "use none, or kill"),
        ] {
            let error = request(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
