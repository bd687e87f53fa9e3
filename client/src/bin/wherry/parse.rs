//! Texts of the command line, parsed strictly: what is not understood is refused with an example.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use wherry_protocol::message::{
    Egress, LogSince, OnUnhealthy, Probe, PublishedOn, PublishedPort, RestartPolicy, Setting, Transport,
    VolumeMount,
};
use wherry_protocol::text::path_parts;
use wherry_protocol::{Name, Prefix, policy};

/// `64m`, `1.5g`, `4096`: bytes, with binary units.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let error = || format!("'{text}' is not a size: use a number with b, k, m or g, as in 64m");
    let lower = text.to_ascii_lowercase();
    let (number, shift) = match lower.chars().last() {
        Some('k') => (&lower[..lower.len() - 1], 10),
        Some('m') => (&lower[..lower.len() - 1], 20),
        Some('g') => (&lower[..lower.len() - 1], 30),
        Some('b') => (&lower[..lower.len() - 1], 0),
        _ => (lower.as_str(), 0),
    };
    let thousandths = thousandths(number).ok_or_else(error)?;
    let bytes = u128::from(thousandths).checked_shl(shift).ok_or_else(error)? / 1000;
    u64::try_from(bytes).ok().filter(|&bytes| bytes > 0).ok_or_else(error)
}

/// `0.5`, `2`: CPUs, as thousandths of one.
pub(crate) fn cpus(text: &str) -> Result<u32, String> {
    thousandths(text)
        .and_then(|milli| u32::try_from(milli).ok())
        .filter(|milli| (1..=1_024_000).contains(milli))
        .ok_or_else(|| {
            format!("'{text}' is not a number of CPUs: use a number from 0.001 to 1024, as in 0.5")
        })
}

/// `100`: processes and threads, at least one.
pub(crate) fn processes(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| format!("'{text}' is not a number of processes: use 1 to {}, as in 100", u32::MAX))
}

/// `30`: whole seconds.
pub(crate) fn seconds(text: &str) -> Result<u16, String> {
    let most = policy::MAX_STOP_SECONDS;
    text.parse()
        .ok()
        .filter(|&number| number <= most)
        .ok_or_else(|| format!("'{text}' is not a number of seconds: use 0 to {most}, as in 30"))
}

/// `9.9.9.9`.
pub(crate) fn address(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("'{text}' is not an IPv4 address: use one as in 9.9.9.9"))
}

/// A decimal number with at most three places, in thousandths.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(places) || places.len() > 3 {
        return None;
    }
    let places: u64 = format!("{places:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(places)
}

/// `90s`, `30m`, `1h`, `7d`: seconds.
pub(crate) fn duration(text: &str) -> Result<u32, String> {
    let error = || format!("'{text}' is not a duration: use a number with s, m, h or d, as in 1h");
    let (number, unit) = match text.chars().last() {
        Some('s') => (&text[..text.len() - 1], 1),
        Some('m') => (&text[..text.len() - 1], 60),
        Some('h') => (&text[..text.len() - 1], 3600),
        Some('d') => (&text[..text.len() - 1], 86_400),
        _ => return Err(error()),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    number
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|&seconds| seconds > 0)
        .ok_or_else(error)
}

/// `500ms`, `10s`, `1m30s`: milliseconds.
pub(crate) fn milliseconds(text: &str) -> Result<u32, String> {
    let time = humantime::parse_duration(text).ok().and_then(|time| u32::try_from(time.as_millis()).ok());
    time.ok_or_else(|| format!("'{text}' is not a time: use a number with ms, s, m or h, as in 10s or 1m30s"))
}

/// `8080`, `8080/healthz`: a port that must answer with status 200.
pub(crate) fn http_probe(text: &str) -> Result<Probe, String> {
    let (port, path) = text.split_once('/').unwrap_or((text, ""));
    match port_number(port) {
        Some(port) => Ok(Probe::Http { port, path: format!("/{path}") }),
        None => Err(format!("'{text}' is not a port and a path: use 80, or 8080/healthz")),
    }
}

/// `pg_isready -U app` for a shell, or `["/bin/check", "--now"]`, as in a Dockerfile.
pub(crate) fn exec_probe(text: &str) -> Result<Probe, String> {
    if !text.starts_with('[') {
        return Ok(Probe::shell(text));
    }
    let words = serde_json::from_str::<Vec<String>>(text).ok().filter(|words| !words.is_empty());
    words.map(Probe::Exec).ok_or_else(|| {
        format!("'{text}' is not an array of arguments: write it as in [\"/bin/check\", \"--now\"]")
    })
}

/// `none`, `kill`.
pub(crate) fn on_unhealthy(text: &str) -> Result<OnUnhealthy, String> {
    match text {
        "none" => Ok(OnUnhealthy::Tell),
        "kill" => Ok(OnUnhealthy::Kill),
        _ => Err(format!(
            "'{text}' is not what can be done about it: use none, or kill together with --restart"
        )),
    }
}

/// `/dev/ttyUSB0`, `/dev/ttyUSB0:/dev/modem`.
pub(crate) fn device(text: &str) -> Result<Setting, String> {
    let (device, path) = text.split_once(':').unwrap_or((text, text));
    if !device.starts_with("/dev/") || path.contains(':') {
        return Err(format!("'{text}' is not a device: use /dev/name, or /dev/name:/dev/name-inside"));
    }
    Ok(Setting::Device { device: device.to_owned(), path: path.to_owned() })
}

/// `none`, `internet`, `lan:192.168.50.0/24`, `lan:192.168.50.9`.
pub(crate) fn egress(text: &str) -> Result<Setting, String> {
    let error = || {
        format!(
            "'{text}' is not a way out: use none, internet, or lan: and a network, as in lan:192.168.50.0/24"
        )
    };
    let egress = match (text, text.strip_prefix("lan:")) {
        ("none", _) => Egress::None,
        ("internet", _) => Egress::Internet,
        (_, Some(network)) => Egress::Lan(network_or_host(network).ok_or_else(error)?),
        (_, None) => return Err(error()),
    };
    Ok(Setting::Egress(egress))
}

/// `NAME=value`, or `NAME` for what this process has; `None` if it has none (as docker does, it is left out).
pub(crate) fn env(text: &str) -> Result<Option<(String, String)>, String> {
    let error = || format!("'{text}' is not a variable: use NAME=value, or NAME to pass on this shell's");
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    let bad = |c: char| c == '\0' || c.is_whitespace();
    if name.is_empty() || name.contains(bad) || value.as_ref().is_some_and(|value| value.contains('\0')) {
        return Err(error());
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// The lines of an environment file: `NAME=value` or `NAME`, `#` comments, empty lines.
pub(crate) fn env_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if !line.is_empty() && !line.starts_with('#') {
            variables.extend(env(line).map_err(|error| format!("line {}: {error}", number + 1))?);
        }
    }
    Ok(variables)
}

/// `no`, `on-failure[:most]`, `always`, `unless-stopped`.
pub(crate) fn restart(text: &str) -> Result<RestartPolicy, String> {
    let error =
        || format!("'{text}' is not a restart policy: use no, on-failure[:most], always or unless-stopped");
    match text.split_once(':') {
        None => match text {
            "no" => Ok(RestartPolicy::No),
            "on-failure" => Ok(RestartPolicy::OnFailure { most: None }),
            // What somebody has stopped stays stopped in either case.
            "always" | "unless-stopped" => Ok(RestartPolicy::Always),
            _ => Err(error()),
        },
        Some(("on-failure", most)) => {
            let most: u32 = most.parse().ok().filter(|&most| most > 0).ok_or_else(error)?;
            Ok(RestartPolicy::OnFailure { most: Some(most) })
        }
        Some(_) => Err(error()),
    }
}

/// Of a file system in memory that does not say, in bytes: as /dev/shm.
const TMPFS_BYTES: u64 = 64 << 20;

/// `/path`, `/path:size=64m`.
pub(crate) fn tmpfs(text: &str) -> Result<Setting, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let size_bytes = match options.strip_prefix("size=") {
        Some(size) => self::size(size)?,
        None if options.is_empty() => TMPFS_BYTES,
        None => return Err(format!("'{text}' is not a place in memory: use /path or /path:size=64m")),
    };
    Ok(Setting::Tmpfs { path: path.to_owned(), size_bytes })
}

/// `nofile=1024`, `nofile=1024:4096`, `core=unlimited`.
pub(crate) fn ulimit(text: &str) -> Result<Setting, String> {
    let error = || format!("'{text}' is not a limit: use name=soft[:hard], as in nofile=1024:4096");
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        number => number.parse::<u64>().map_err(|_| error()),
    };
    let (name, values) = text.split_once('=').ok_or_else(error)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    Ok(Setting::Limit { name: name.to_owned(), soft: value(soft)?, hard: value(hard)? })
}

/// `net.core.somaxconn=1024`.
pub(crate) fn sysctl(text: &str) -> Result<Setting, String> {
    let error =
        || format!("'{text}' is not a kernel parameter: use name=value, as in net.core.somaxconn=1024");
    let (name, value) = text.split_once('=').ok_or_else(error)?;
    Ok(Setting::Sysctl { name: name.to_owned(), value: value.to_owned() })
}

/// `db:10.2.0.2`.
pub(crate) fn host(text: &str) -> Result<Setting, String> {
    let error = || format!("'{text}' is not a host: use name:address, as in db:10.2.0.2");
    let (name, address) = text.split_once(':').ok_or_else(error)?;
    Ok(Setting::Host { name: name.to_owned(), address: address.parse().map_err(|_| error())? })
}

/// `10m` ago, or a time such as `2026-11-25T18:00:00Z`.
pub(crate) fn since(text: &str) -> Result<LogSince, String> {
    if let Ok(seconds) = duration(text) {
        return Ok(LogSince::Age(u64::from(seconds) * 1000));
    }
    let time = humantime::parse_rfc3339_weak(text).ok().and_then(|time| {
        let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    });
    time.map(LogSince::Time).ok_or_else(|| {
        format!("'{text}' is no time: use 10m for ten minutes ago, or 2026-11-25T18:00:00Z for a moment")
    })
}

/// `key=value`, or `key` alone.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key.is_empty() || text.contains('\0') {
        true => Err(format!("'{text}' is not a label: use key=value")),
        false => Ok((key.to_owned(), value.to_owned())),
    }
}

/// `name:/path`, `name:/path:ro`.
pub(crate) fn volume(text: &str) -> Result<VolumeMount, String> {
    let error = || format!("'{text}' is not a volume: use name:/path or name:/path:ro");
    let (name, rest) = text.split_once(':').ok_or_else(error)?;
    if name.starts_with(['/', '.', '~']) {
        return Err(format!(
            "'{name}' is a path: directories of a board cannot be mounted, only named volumes"
        ));
    }
    let (path, read_only) = match rest.rsplit_once(':') {
        Some((path, "ro")) => (path, true),
        Some((path, "rw")) => (path, false),
        Some(_) => return Err(error()),
        None => (rest, false),
    };
    let volume: Name = name.parse().map_err(|_| error())?;
    match policy::can_be_mounted_over(path) {
        true => Ok(VolumeMount { volume, path: path.to_owned(), read_only }),
        false => Err(format!(
            "'{path}' is not a place for a volume: use an absolute path without '..' other than / and not below /proc, \
             /sys or /dev"
        )),
    }
}

/// No volume inside another one, none at the same path twice.
pub(crate) fn volumes_apart(mounts: &[VolumeMount]) -> Result<(), String> {
    for (number, one) in mounts.iter().enumerate() {
        for other in mounts.iter().skip(number + 1) {
            let [a, b] = [one, other].map(|mount| path_parts(&mount.path).collect::<Vec<_>>());
            if a.starts_with(&b) || b.starts_with(&a) {
                return Err(format!("volumes at '{}' and '{}' overlap", one.path, other.path));
            }
        }
    }
    Ok(())
}

fn port_number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port: &u16| digits && port > 0)
}

/// `8080:80`, `53:53/udp`, `node:8080:80`, `25:25,proxy,allow=192.168.50.0/24`.
pub(crate) fn publish(text: &str) -> Result<PublishedPort, String> {
    let error = || {
        format!(
            "'{text}' is not a published port: use [node:]port:container-port[/udp][,proxy][,allow=network], as in \
             8080:80"
        )
    };
    let mut parts = text.split(',');
    let pair = parts.next().ok_or_else(error)?;
    let (pair, on) = match pair.split_once(':') {
        Some(("node", rest)) => (rest, PublishedOn::Node),
        Some(("broker", rest)) => (rest, PublishedOn::Broker),
        Some(_) | None => (pair, PublishedOn::Broker),
    };
    let (pair, transport) = match pair.strip_suffix("/udp") {
        Some(pair) => (pair, Transport::Udp),
        None => (pair.strip_suffix("/tcp").unwrap_or(pair), Transport::Tcp),
    };
    let (port, container_port) = pair.split_once(':').ok_or_else(error)?;
    let (mut allow, mut proxy) = (Vec::new(), false);
    for option in parts {
        match option.strip_prefix("allow=") {
            Some(network) => allow.push(network_or_host(network).ok_or_else(error)?),
            None if option == "proxy" => proxy = true,
            None => return Err(error()),
        }
    }
    let (port, container_port) =
        (port_number(port).ok_or_else(error)?, port_number(container_port).ok_or_else(error)?);
    Ok(PublishedPort { port, container_port, transport, on, allow, proxy })
}

/// `192.168.50.0/24`, `192.168.50.9`.
fn network_or_host(text: &str) -> Option<Prefix> {
    text.parse().map(Prefix::host).ok().or_else(|| text.parse().ok())
}

/// `web:80`, `web:53/udp`: container, port, protocol.
pub(crate) fn target(text: &str) -> Result<(String, u16, Transport), String> {
    let error = || format!("'{text}' is not a port of a container: use container:port or container:port/udp");
    let (head, transport) = match text.rsplit_once('/') {
        Some((head, "udp")) => (head, Transport::Udp),
        Some((head, "tcp")) => (head, Transport::Tcp),
        Some(_) => return Err(error()),
        None => (text, Transport::Tcp),
    };
    let (container, port) = head.rsplit_once(':').filter(|(name, _)| !name.is_empty()).ok_or_else(error)?;
    Ok((container.to_owned(), port_number(port).ok_or_else(error)?, transport))
}

/// `8080`, `127.0.0.2:8080`, `[::1]:8080`; port 0 is any free one.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    let error = || format!("'{text}' is not a port to listen on: use port or address:port");
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let port = text.parse().map_err(|_| error())?;
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| error())
}

/// `192.168.1.10/24`: a board's address and the length of its network's prefix.
pub(crate) fn board_address(text: &str) -> Result<(Ipv4Addr, String), String> {
    let error = || format!("'{text}' is not an address with a prefix length, as in 192.168.1.10/24");
    let (address, prefix) = text.split_once('/').ok_or_else(error)?;
    let parsed: Ipv4Addr = address.parse().map_err(|_| error())?;
    let digits = !prefix.is_empty() && prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
    match prefix.parse::<u8>() {
        Ok(1..=30)
            if digits && !parsed.is_unspecified() && !parsed.is_loopback() && !parsed.is_multicast() =>
        {
            Ok((parsed, text.to_owned()))
        }
        _ => Err(error()),
    }
}

/// A VLAN's number.
pub(crate) fn vlan(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=4094).contains(number) && !text.starts_with('+'));
    number.ok_or_else(|| format!("'{text}' is not a VLAN: use a number from 1 to 4094"))
}

/// An interface of a board: `eth0`, or `dc:a6:32:01:02:03`.
pub(crate) fn interface(text: &str) -> Result<String, String> {
    let octet = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hardware = text.split(':').count() == 6 && text.split(':').all(octet);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let name =
        text.len() <= 15 && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(plain);
    if hardware || name {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{text}' is not an interface: use its name or hardware address, as in eth0 or dc:a6:32:01:02:03"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("10b", 10),
            ("2k", 2048),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("1.5g", 3 << 29),
        ] {
            assert_eq!(size(text), Ok(bytes));
        }
        for bad in
            ["", "m", "0", "-1", "1x", "1mb", "1 m", "1.2345g", ".5g", "1.g", "99999999999999999999g", "1é"]
        {
            assert!(size(bad).unwrap_err().contains("not a size"), "{bad}");
        }
    }

    #[test]
    fn cpu_counts() {
        assert_eq!((cpus("0.5"), cpus("2"), cpus("1.125")), (Ok(500), Ok(2000), Ok(1125)));
        for bad in ["", "0", "0.0", "-1", "1e3", "0.0001", "2000", "x"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(seconds));
        }
        for bad in ["", "h", "1", "0s", "-1h", "1.5h", "1h30m", "99999999d", "+1s"] {
            assert!(duration(bad).unwrap_err().contains("not a duration"), "{bad}");
        }
    }

    #[test]
    fn questions() {
        assert_eq!(
            (milliseconds("500ms"), milliseconds("10s"), milliseconds("1m30s")),
            (Ok(500), Ok(10_000), Ok(90_000))
        );
        for bad in ["", "10", "-1s", "s", "100000h"] {
            assert!(milliseconds(bad).unwrap_err().contains("not a time"), "{bad}");
        }
        let http = |port, path: &str| Ok(Probe::Http { port, path: path.into() });
        assert_eq!((http_probe("80"), http_probe("8080/a/b?c")), (http(80, "/"), http(8080, "/a/b?c")));
        for bad in ["", "x", "0", "/a", "80:x", "70000/"] {
            assert!(http_probe(bad).unwrap_err().contains("not a port and a path"), "{bad}");
        }
        let exec = |words: &[&str]| Ok(Probe::Exec(words.iter().map(|&word| word.to_owned()).collect()));
        assert_eq!(exec_probe("test -e /x"), exec(&["/bin/sh", "-c", "test -e /x"]));
        assert_eq!(exec_probe(r#"["/check", "a b"]"#), exec(&["/check", "a b"]));
        for bad in ["[", "[]", "[1]", "[\"a\"] b"] {
            assert!(exec_probe(bad).unwrap_err().contains("not an array"), "{bad}");
        }
        assert!(on_unhealthy("restart").is_err());
    }

    #[test]
    fn devices() {
        let wish =
            |device: &str, path: &str| Ok(Setting::Device { device: device.into(), path: path.into() });
        assert_eq!(device("/dev/ttyUSB0"), wish("/dev/ttyUSB0", "/dev/ttyUSB0"));
        assert_eq!(device("/dev/ttyUSB0:/dev/modem"), wish("/dev/ttyUSB0", "/dev/modem"));
        for bad in ["", "ttyUSB0", "/dev/a:/dev/b:rwm"] {
            assert!(device(bad).unwrap_err().contains("not a device"), "{bad}");
        }
    }

    #[test]
    fn variables() {
        assert_eq!(env("A=b=c"), Ok(Some(("A".into(), "b=c".into()))));
        assert_eq!(env("A="), Ok(Some(("A".into(), String::new()))));
        assert_eq!(env("WHERRY_NO_SUCH_VARIABLE"), Ok(None));
        for bad in ["", "=x", "A B=c", "A\0=b", "A=\0"] {
            assert!(env(bad).is_err(), "{bad:?}");
        }
        let file = "# comment\n\nA=1\n  B= two \nWHERRY_NO_SUCH_VARIABLE\n";
        assert_eq!(env_file(file), Ok(vec![("A".into(), "1".into()), ("B".into(), " two ".into())]));
        assert!(env_file("A=1\n=2\n").unwrap_err().starts_with("line 2:"));
    }

    #[test]
    fn volumes() {
        let mount = volume("data:/var/lib:ro").unwrap();
        assert_eq!((mount.volume.as_str(), mount.path.as_str(), mount.read_only), ("data", "/var/lib", true));
        assert!(!volume("data:/x").unwrap().read_only);
        assert!(volume("/etc:/etc").unwrap_err().contains("only named volumes"));
        for bad in ["data", "data:", "data:x", "data:/", "data:/a/../b", "data:/a:rx", "Data:/a", ":/a"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let apart = |texts: &[&str]| {
            volumes_apart(&texts.iter().map(|text| volume(text).unwrap()).collect::<Vec<_>>())
        };
        assert!(apart(&["a:/x", "b:/y", "c:/xy"]).is_ok());
        assert!(apart(&["a:/x", "b:/x/y"]).is_err());
        assert!(apart(&["a:/x/", "b:/x"]).is_err());
    }

    #[test]
    fn board_addresses() {
        let text = "192.168.1.10/24";
        assert_eq!(board_address(text), Ok((Ipv4Addr::new(192, 168, 1, 10), text.into())));
        for bad in [
            "",
            "192.168.1.10",
            "192.168.1.10/",
            "192.168.1.10/0",
            "192.168.1.10/31",
            "1.2.3/24",
            "127.0.0.1/8",
            "0.0.0.0/8",
            "1.2.3.4/+8",
        ] {
            assert!(board_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!(publish("8080:80"), Ok(PublishedPort::tcp(8080, 80)));
        assert_eq!(publish("25:25/tcp"), Ok(PublishedPort::tcp(25, 25)));
        let mail = publish("25:2525,proxy,allow=192.168.50.0/24,allow=10.9.9.9").unwrap();
        assert_eq!((mail.proxy, mail.allow.len(), mail.to_string().as_str()), (true, 2, "25->2525"));
        assert_eq!(publish("node:53:5353/udp").unwrap().to_string(), "node:53->5353/udp");
        assert_eq!(publish("broker:8080:80"), publish("8080:80"));
        for bad in
            ["8080:80,", "8080:80,allow=", "8080:80,allow=x", "host:80:80", "127.0.0.1:80:80", "80:80/sctp"]
        {
            assert!(publish(bad).is_err(), "{bad}");
        }
        for bad in ["", "80", "0:80", "80:0", "1:2:3", "65536:1", "a:b", "+1:2"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
        assert_eq!(target("web:80"), Ok(("web".into(), 80, Transport::Tcp)));
        assert_eq!(target("c3:53/udp"), Ok(("c3".into(), 53, Transport::Udp)));
        for bad in ["web", "web:", ":80", "web:0", "web:80/icmp", "web:http"] {
            assert!(target(bad).is_err(), "{bad}");
        }
        assert_eq!(listen("8080").unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(listen("127.0.0.2:80").unwrap().to_string(), "127.0.0.2:80");
        for bad in ["", "x", "70000", "1.2.3.4", "host:80"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }
}
