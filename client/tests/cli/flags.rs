//! Every flag of `run` with nonsense: one exact sentence, the exit code of wrong usage, and nothing asked of the broker.
use crate::world::World;

/// Longer than any name may be.
const LONG: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const NAME: &str =
    "is not a valid name: use 1 to 63 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit";
const VARIABLE: &str = "is not a variable: use NAME=value, or NAME to pass on this shell's";
const PORTS: &str =
    "is not a published port: use [node:]port:container-port[/udp][,proxy][,allow=network], as in 8080:80";
const VOLUME: &str = "is not a volume: use name:/path or name:/path:ro";
const PLACE: &str = "is not a place for a volume: use an absolute path without '..' other than / and not below /proc, /sys or /dev";
const SIZE: &str = "is not a size: use a number with b, k, m or g, as in 64m";
const CPUS: &str = "is not a number of CPUs: use a number from 0.001 to 1024, as in 0.5";
const PROCESSES: &str = "is not a number of processes: use 1 to 4294967295, as in 100";
const RESTART: &str = "is not a restart policy: use no, on-failure[:most], always or unless-stopped";
const SIGNAL: &str = "is not a signal: use a name or number, as in TERM or 15";
const SECONDS: &str = "is not a number of seconds: use 0 to 3600, as in 30";
const LIMIT: &str = "is not a limit: use name=soft[:hard], as in nofile=1024:4096";
const PARAMETER: &str = "is not a kernel parameter: use name=value, as in net.core.somaxconn=1024";
const WAY_OUT: &str =
    "is not a way out: use none, internet, or lan: and a network, as in lan:192.168.50.0/24";
const ADDRESS: &str = "is not an IPv4 address: use one as in 9.9.9.9";
const HOST: &str = "is not a host: use name:address, as in db:10.2.0.2";
const HOST_NAME: &str = "is not a host name: use letters, digits, '-' and '.'";
const LABEL: &str = "is not a label: use key=value";
const MOUNTED: &str = "an absolute path without '..' other than / and not below /proc, /sys or /dev, please";
const ADDABLE: &str =
    "cannot be had: beyond the usual ones there are AUDIT_WRITE, IPC_LOCK, NET_RAW, SETFCAP";
const USUAL: &str = "is no capability that a container has: they are CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, \
                     SETPCAP, NET_BIND_SERVICE and ALL";

const FILE: &str = "is not a file for a container: use file:/path, as in nginx.conf:/etc/nginx/nginx.conf";
const DEVICE: &str = "is not a device: use /dev/name, or /dev/name:/dev/name-inside";
const CONSTRAINT: &str = "is not a constraint: expected node.hostname, node.id, node.platform.arch or node.labels.NAME, then == or \
                          != and a value, as in node.labels.shelf==top";
const ARGUMENTS: &str = "is not an array of arguments: write it as in [\"/bin/check\", \"--now\"]";
const PORT_AND_PATH: &str = "is not a port and a path: use 80, or 8080/healthz";
const TIME: &str = "is not a time: use a number with ms, s, m or h, as in 10s or 1m30s";

/// What the parser of one flag refuses: the flag as it is given, its form in the help, the value, what the value is not. The
/// value is named by itself, and again in the sentence.
const REFUSED_BY_FORM: &[(&str, &str, &str, &str)] = &[
    ("-v", "--volume <NAME:PATH>", "", VOLUME),
    ("-v", "--volume <NAME:PATH>", "data", VOLUME),
    ("-v", "--volume <NAME:PATH>", "data:/srv:rx", VOLUME),
    ("-p", "--publish <[node:]PORT:PORT[/udp][,…]>", "80", PORTS),
    ("-p", "--publish <[node:]PORT:PORT[/udp][,…]>", "0:80", PORTS),
    ("-p", "--publish <[node:]PORT:PORT[/udp][,…]>", "70000:80", PORTS),
    ("-p", "--publish <[node:]PORT:PORT[/udp][,…]>", "80:80/sctp", PORTS),
    ("--name", "--name <NAME>", "", NAME),
    ("--name", "--name <NAME>", "../evil", NAME),
    ("--name", "--name <NAME>", LONG, NAME),
    ("--location", "--location <NAME>", "", NAME),
    ("--location", "--location <NAME>", "../x", NAME),
    ("-m", "--memory <SIZE>", "lots", SIZE),
    ("-m", "--memory <SIZE>", "-1", SIZE),
    ("-m", "--memory <SIZE>", "99999999999999999999g", SIZE),
    ("--cpus", "--cpus <NUMBER>", "0", CPUS),
    ("--cpus", "--cpus <NUMBER>", "nan", CPUS),
    ("--cpus", "--cpus <NUMBER>", "1e9", CPUS),
    ("--pids-limit", "--pids-limit <NUMBER>", "0", PROCESSES),
    ("--pids-limit", "--pids-limit <NUMBER>", "many", PROCESSES),
    ("--pids-limit", "--pids-limit <NUMBER>", "99999999999", PROCESSES),
    ("--restart", "--restart <POLICY>", "sometimes", RESTART),
    ("--restart", "--restart <POLICY>", "on-failure:0", RESTART),
    ("--restart", "--restart <POLICY>", "always:3", RESTART),
    ("--stop-signal", "--stop-signal <SIGNAL>", "NONE", SIGNAL),
    ("--stop-signal", "--stop-signal <SIGNAL>", "0", SIGNAL),
    ("--stop-signal", "--stop-signal <SIGNAL>", "65", SIGNAL),
    ("--stop-timeout", "--stop-timeout <SECONDS>", "soon", SECONDS),
    ("--stop-timeout", "--stop-timeout <SECONDS>", "-1", SECONDS),
    ("--stop-timeout", "--stop-timeout <SECONDS>", "3601", SECONDS),
    (
        "--tmpfs",
        "--tmpfs <PATH[:size=SIZE]>",
        "/tmp:noexec",
        "is not a place in memory: use /path or /path:size=64m",
    ),
    ("--ulimit", "--ulimit <NAME=SOFT[:HARD]>", "nofile", LIMIT),
    ("--ulimit", "--ulimit <NAME=SOFT[:HARD]>", "nofile=x", LIMIT),
    ("--ulimit", "--ulimit <NAME=SOFT[:HARD]>", "", LIMIT),
    ("--sysctl", "--sysctl <NAME=VALUE>", "net.core.somaxconn", PARAMETER),
    ("--sysctl", "--sysctl <NAME=VALUE>", "", PARAMETER),
    ("--dns", "--dns <ADDRESS>", "nine", ADDRESS),
    ("--dns", "--dns <ADDRESS>", "::1", ADDRESS),
    ("--egress", "--egress <WHERE>", "all", WAY_OUT),
    ("--egress", "--egress <WHERE>", "lan:", WAY_OUT),
    ("--egress", "--egress <WHERE>", "lan:192.168.1.0/33", WAY_OUT),
    ("--add-host", "--add-host <NAME:ADDRESS>", "db", HOST),
    ("--add-host", "--add-host <NAME:ADDRESS>", "db:x", HOST),
    ("-f", "--file <FILE:PATH>", "page.html", FILE),
    ("-f", "--file <FILE:PATH>", "a:/b/../c", FILE),
    ("-f", "--file <FILE:PATH>", "", FILE),
    ("--device", "--device <DEVICE[:PATH]>", "ttyUSB0", DEVICE),
    ("--device", "--device <DEVICE[:PATH]>", "/dev/a:/dev/b:rwm", DEVICE),
    ("--constraint", "--constraint <CONSTRAINT>", "shelf==top", CONSTRAINT),
    ("--constraint", "--constraint <CONSTRAINT>", "node.id", CONSTRAINT),
    ("--health-cmd", "--health-cmd <COMMAND>", "[1]", ARGUMENTS),
    ("--health-http", "--health-http <PORT[/PATH]>", "x", PORT_AND_PATH),
    ("--health-http", "--health-http <PORT[/PATH]>", "0/", PORT_AND_PATH),
    ("--health-interval", "--health-interval <TIME>", "often", TIME),
    ("--health-timeout", "--health-timeout <TIME>", "10", TIME),
    ("--health-start-period", "--health-start-period <TIME>", "-1s", TIME),
    ("--health-start-interval", "--health-start-interval <TIME>", "", TIME),
    (
        "--health-on-failure",
        "--health-on-failure <ACTION>",
        "restart",
        "is not what can be done about it: use none, or kill together with --restart",
    ),
    ("-l", "--label <KEY=VALUE>", "", LABEL),
    ("-l", "--label <KEY=VALUE>", "=v", LABEL),
];

#[test]
fn what_a_flag_does_not_understand_is_refused_with_an_example() {
    let world = World::joined();
    for (flag, form, value, reason) in REFUSED_BY_FORM {
        let sentence =
            format!("wherry: invalid value '{value}' for '{form}': '{value}' {reason}; --help tells more\n");
        refused(&world, &[flag, value], &sentence);
    }
    assert!(world.broker.state().containers.is_empty());
}

fn refused(world: &World, flags: &[&str], sentence: &str) {
    // `=` so that a value may begin with a dash.
    let words = match flags {
        [flag, value] if flag.starts_with("--") => vec![format!("{flag}={value}")],
        _ => flags.iter().map(|&word| word.to_owned()).collect(),
    };
    let line: Vec<&str> =
        ["run"].into_iter().chain(words.iter().map(String::as_str)).chain(["web"]).collect();
    let ran = world.run(&line);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(2), "", sentence), "{line:?}");
}

/// The same for what boards are told of their network; `flash cluster` and `flash node` have the same flags.
const REFUSED_BY_FLASH: &[(&str, &str, &str, &str)] = &[
    ("--vlan", "--vlan <NUMBER>", "", VLAN),
    ("--vlan", "--vlan <NUMBER>", "0", VLAN),
    ("--vlan", "--vlan <NUMBER>", "4095", VLAN),
    ("--vlan", "--vlan <NUMBER>", "-1", VLAN),
    ("--vlan", "--vlan <NUMBER>", "five", VLAN),
    ("--dns", "--dns <ADDRESS>", "", ADDRESS),
    ("--dns", "--dns <ADDRESS>", "dns.example", ADDRESS),
    ("--ntp", "--ntp <ADDRESS>", "::1", ADDRESS),
    ("--ntp", "--ntp <ADDRESS>", "pool.ntp.org", ADDRESS),
    ("--interface", "--interface <INTERFACE>", "", INTERFACE),
    ("--interface", "--interface <INTERFACE>", "../eth0", INTERFACE),
    ("--interface", "--interface <INTERFACE>", "dc:a6:32:01:02", INTERFACE),
];
const VLAN: &str = "is not a VLAN: use a number from 1 to 4094";
const INTERFACE: &str =
    "is not an interface: use its name or hardware address, as in eth0 or dc:a6:32:01:02:03";

/// Exit code and words of `flash cluster` and of `flash node` with these flags.
fn flash_refuses(world: &World, flags: &[&str], sentence: &str) {
    for what in ["cluster", "node"] {
        let usual = ["flash", what, "shed", "--images", "/nonexistent", "--out", "/nonexistent/out"];
        let ran = world.run(&[&usual[..], flags].concat());
        let expected = (Some(2), "", sentence);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), expected, "{what} {flags:?}");
    }
}

#[test]
fn what_boards_are_told_of_their_network_is_refused_before_anything_is_made() {
    let world = World::joined();
    let tokens = world.broker.state().tokens.len();
    for (flag, form, value, reason) in REFUSED_BY_FLASH {
        let sentence =
            format!("wherry: invalid value '{value}' for '{form}': '{value}' {reason}; --help tells more\n");
        flash_refuses(&world, &[&format!("{flag}={value}")], &sentence);
    }
    let many = ["--dns=9.9.9.9"; 5];
    flash_refuses(&world, &many, "wherry: --dns is given 5 times, a board asks at most 4\n");
    let nobody = "wherry: --ntp 224.0.0.1 is no host's address\n";
    flash_refuses(&world, &["--ntp=224.0.0.1"], nobody);
    let elsewhere = "wherry: --gateway 10.1.1.1 is no other host of the network of 192.168.1.9/24\n";
    flash_refuses(&world, &["--static=192.168.1.9/24", "--gateway=10.1.1.1"], elsewhere);
    assert_eq!(world.broker.state().tokens.len(), tokens);
}

#[test]
fn what_a_flag_may_not_say_is_refused_in_one_sentence() {
    let world = World::joined();
    let cases: &[(&[&str], &str)] = &[
        (&["-e", "=x"], &format!("'=x' {VARIABLE}")),
        (&["-e", ""], &format!("'' {VARIABLE}")),
        (&["-e", "A B=1"], &format!("'A B=1' {VARIABLE}")),
        (&["-w", "srv"], "the working directory 'srv' is not absolute"),
        (&["-w", ""], "the working directory '' is not absolute"),
        (&["-p", "80:80", "-p", "80:81"], "port 80 is published twice"),
        (&["-v", "a:/x", "-v", "b:/x/y"], "volumes at '/x' and '/x/y' overlap"),
        (&["-v", "a:/x", "-v", "b:/x"], "volumes at '/x' and '/x' overlap"),
        (&["-v", "a:/x", "--tmpfs", "/x/"], "two things are mounted at '/x/': choose one of both"),
        (&["--tmpfs", "/x", "--tmpfs", "/./x"], "two things are mounted at '/./x': choose one of both"),
        (&["--tmpfs", "tmp"], &format!("nothing can be mounted at 'tmp': {MOUNTED}")),
        (&["--tmpfs", "/proc"], &format!("nothing can be mounted at '/proc': {MOUNTED}")),
        (&["--tmpfs", "/a/../b"], &format!("nothing can be mounted at '/a/../b': {MOUNTED}")),
        (&["--tmpfs", "/x:size=1"], "a file system in memory has 4 KiB to 1 TiB, not 1 bytes"),
        (&["-m", "1k"], "1024 bytes of memory are too few to start in: give at least 1m"),
        (&["--restart", "always", "--rm"], "--rm and --restart do not go together: choose one of both"),
        (&["--cap-add", "SYS_ADMIN"], &format!("the capability 'SYS_ADMIN' {ADDABLE}")),
        (&["--cap-add", ""], &format!("the capability '' {ADDABLE}")),
        (&["--cap-drop", "FLY"], &format!("'FLY' {USUAL}")),
        (&["--cap-drop", ""], &format!("'' {USUAL}")),
        (&["--ulimit", "nofile=2:1"], "the limit nofile cannot be 2 when it may be at most 1"),
        (
            &["--ulimit", "files=1"],
            "there is no limit called 'files': they are as, core, cpu, data, fsize, memlock, msgqueue, nice, nofile, \
             nproc, sigpending, stack",
        ),
        (
            &["--sysctl", "net.core.somaxconn="],
            "the value of net.core.somaxconn is empty, too long or no text",
        ),
        (&["-f", "/no/such/file:/x"], "/no/such/file: No such file or directory (os error 2)"),
        (
            &["-f", "/etc/hostname:/srv/x", "-v", "data:/srv"],
            "'/srv/x' would be hidden by what is mounted at /srv: copy it there with `wherry cp` once it runs",
        ),
        (
            &["--health-tcp", "80", "--health-retries", "0"],
            "a container is unhealthy after 1 to 1000 failures, not 0",
        ),
        (
            &["--health-tcp", "80", "--health-interval", "1ms"],
            "the interval of a health check is 100 ms to a day",
        ),
        (&["--health-http", "80/a b"], "'/a b' is not a path to ask for: begin with '/', no spaces"),
        (&["--dns", "0.0.0.0"], "0.0.0.0 cannot be a name server"),
        (&["--dns", "224.0.0.1"], "224.0.0.1 cannot be a name server"),
        (
            &["--egress", "lan:127.0.0.0/16"],
            "'lan:127.0.0.0/16' reaches into 127.0.0.0/8, which is not the network of a board: name a smaller one",
        ),
        (
            &["--egress", "lan:192.168.50.9/24"],
            "'lan:192.168.50.9/24' has an address within a network: say lan:192.168.50.0/24",
        ),
        (
            &["--egress", "none", "--egress", "internet"],
            "a container that may send nothing outside cannot also send something: leave out --egress none",
        ),
        (&["--add-host", "a b:1.2.3.4"], &format!("'a b' {HOST_NAME}")),
        (&["--add-host", ":1.2.3.4"], &format!("'' {HOST_NAME}")),
    ];
    for (flags, sentence) in cases {
        refused(&world, flags, &format!("wherry: {sentence}\n"));
    }
    let places =
        [("data:/", "/"), ("data:srv", "srv"), ("data:/a/../b", "/a/../b"), ("data:/proc/x", "/proc/x")];
    for (value, path) in places {
        let sentence = format!("invalid value '{value}' for '--volume <NAME:PATH>': '{path}' {PLACE}");
        refused(&world, &["-v", value], &format!("wherry: {sentence}; --help tells more\n"));
    }
    assert!(world.broker.state().containers.is_empty());
}

#[test]
fn files_and_words_that_do_not_fit_are_refused() {
    let world = World::joined();
    let file = |name: &str, bytes: &[u8]| {
        let path = world.home.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let cases = [
        (file("missing", b"") + "-not", ": No such file or directory (os error 2)"),
        (file("large", &[b'a'; 65 * 1024]), ": it is too large for an environment"),
        (file("latin", b"\xff=1\n"), ": stream did not contain valid UTF-8"),
        ("/".to_owned(), ": Is a directory (os error 21)"),
    ];
    for (path, reason) in cases {
        refused(&world, &["--env-file", &path], &format!("wherry: cannot read {path}{reason}\n"));
    }
    let bad = file("bad", b"A=1\nnot a variable\n");
    refused(&world, &["--env-file", &bad], &format!("wherry: {bad}, line 2: 'not a variable' {VARIABLE}\n"));
    for flag in ["--detach", "--interactive", "--tty", "--rm", "--read-only", "--json"] {
        let sentence =
            format!("unexpected value 'maybe' for '{flag}' found; no more were expected; --help tells more");
        refused(&world, &[flag, "maybe"], &format!("wherry: {sentence}\n"));
    }
    let image =
        "names no image: expected a name as in web:1.2, the beginning of an id, or both as in web@sha256:…";
    for name in ["Web", "", "web:", "--no-such-flag"] {
        let ran = world.run(&["run", name]);
        assert_eq!((ran.code, ran.err), (Some(2), format!("wherry: '{name}' {image}\n")));
    }
    assert!(world.broker.state().containers.is_empty());
}

/// A flag that is new needs its nonsense here.
#[test]
fn every_flag_with_a_value_has_its_nonsense() {
    /// The broker knows which nodes there are, and it and the image which users, programs and host names.
    const JUDGED_LATER: [&str; 4] = ["--node", "--user", "--entrypoint", "--hostname"];
    let world = World::empty();
    let help = world.line("run --help");
    let this = include_str!("flags.rs");
    let flags = help.ok().lines().filter_map(|line| {
        let (name, rest) = line.split_once("--")?.1.split_once(' ')?;
        rest.starts_with('<').then(|| format!("--{name}"))
    });
    let flags: Vec<String> = flags.collect();
    assert!(flags.len() > 20, "{flags:?}");
    let short = |flag: &str| {
        let pairs = [("--env", "-e"), ("--workdir", "-w"), ("--file", "-f")];
        pairs.iter().find(|(long, _)| *long == flag).map_or(flag.to_owned(), |(_, short)| (*short).to_owned())
    };
    for flag in flags.iter().filter(|flag| !JUDGED_LATER.contains(&flag.as_str())) {
        let named = format!("\"{}", short(flag));
        assert!(this.contains(&named), "{flag} has no nonsense in this file");
    }
}
