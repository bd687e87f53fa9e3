//! Two real container images for demo and tests, from Debian packages: `web`, a lighttpd, and `client`, a busybox.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wherry_images::disk::Arch;

use crate::debs::{self, Package, debian_arch};
use crate::error::TaskError;
use crate::layer::Layer;
use crate::oci::{self, Start};
use crate::project::{Project, hash_parts, make_dir, mebibytes};

/// Part of the cache key: raised when the way of building changes the result.
const RECIPE: &[u8] = b"1";

/// The page that `web` serves.
const PAGE: &str = "<!doctype html>\n<title>Wherry</title>\n<p>Hello from a container behind Wherry.</p>\n";

/// Everything in the foreground and on standard error (lighttpd closes its standard output); nothing written to disk.
const LIGHTTPD_CONF: &str = r#"server.port = 80
server.document-root = "/srv"
server.modules = ( "mod_accesslog" )
index-file.names = ( "index.html" )
mimetype.assign = ( ".html" => "text/html; charset=utf-8", "" => "application/octet-stream" )
accesslog.filename = "/dev/stderr"
$SERVER["socket"] == "[::]:80" { }
"#;

/// What people type at a small shell, and what tests need.
const APPLETS: [&str; 56] = [
    "[", "ash", "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "du",
    "echo", "env", "expr", "false", "find", "free", "grep", "head", "hostname", "id", "ifconfig", "ip",
    "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv", "nc", "nslookup", "ping", "ps", "pwd", "rm",
    "rmdir", "sed", "seq", "sh", "sleep", "sort", "stat", "tail", "test", "timeout", "top", "touch", "true",
    "tty", "uname", "wc", "wget",
];

/// Where packages have their programs.
const BUSYBOX: &str = "bin/busybox";
const REGISTRY: &str = "usr/bin/docker-registry";

const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// An image's definition.
pub(crate) struct Fixture {
    /// Of the image, and of its archive.
    pub(crate) name: &'static str,
    /// Debian's.
    pub(crate) packages: &'static [&'static str],
    /// Its program.
    pub(crate) start: Start,
    /// Added files that can be read by all, with their text.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// The layers, from the packages' files in the order of `packages`.
    pub(crate) layers: fn(&Fixture, &[PathBuf]) -> Result<Vec<Layer>, TaskError>,
}

const FIXTURES: [Fixture; 2] = [
    Fixture {
        name: "web",
        packages: &["lighttpd", "libc6", "libnettle8", "libpcre2-8-0", "libxxhash0"],
        start: Start {
            command: &["/usr/sbin/lighttpd", "-D", "-f", "/etc/lighttpd.conf"],
            path: "/usr/sbin:/usr/bin:/sbin:/bin",
            ports: &[80],
        },
        files: &[("etc/lighttpd.conf", LIGHTTPD_CONF), ("srv/index.html", PAGE)],
        layers: web_layers,
    },
    Fixture {
        name: "client",
        packages: &["busybox-static"],
        start: Start { command: &["/bin/sh"], path: "/bin", ports: &[] },
        files: &[],
        layers: client_layers,
    },
];

/// Puts `web.tar`, `client.tar`, a plain `busybox` and the registry that tests pull from into `fixtures/` of the output for `arch`.
pub(crate) fn run(project: &Project, arch: Arch) -> Result<(), TaskError> {
    let out = project.output(arch).join("fixtures");
    make_dir(&out)?;
    FIXTURES.iter().try_for_each(|fixture| place(project, fixture, arch, &out))?;
    // For root file systems that tests make themselves.
    let busybox = Package { name: "busybox-static", arch, version: None };
    place_program(project, busybox, BUSYBOX, &out.join("busybox"))?;
    let registry = Package { name: "docker-registry", arch, version: None };
    place_program(project, registry, REGISTRY, &out.join("docker-registry"))
}

/// Puts the archive into `out`, made if the cache does not have it.
pub(crate) fn place(project: &Project, fixture: &Fixture, arch: Arch, out: &Path) -> Result<(), TaskError> {
    let cached = ensure(project, fixture, arch)?;
    let to = out.join(format!("{}.tar", fixture.name));
    let bytes = fs::copy(&cached, &to).map_err(TaskError::io("create", &to))?;
    println!("{:13} {} {}", format!("{}.tar", fixture.name), arch.name(), mebibytes(bytes));
    Ok(())
}

/// One program of a package, alone.
fn place_program(project: &Project, package: Package<'_>, program: &str, to: &Path) -> Result<(), TaskError> {
    let deb = debs::fetch(project, package)?;
    let mut layer = Layer::default();
    layer.package(&deb, |path| path == program)?;
    let content = layer
        .content(program)
        .ok_or_else(|| TaskError::Say(format!("{} has no {program}", deb.display())))?;
    fs::write(to, content).map_err(TaskError::io("create", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(TaskError::io("make executable", to))
}

/// The archive in the cache, made if it is not there.
fn ensure(project: &Project, fixture: &Fixture, arch: Arch) -> Result<PathBuf, TaskError> {
    let packages: Vec<_> =
        fixture.packages.iter().map(|name| Package { name, arch, version: None }).collect();
    let debs = debs::fetch_all(project, &packages)?;
    let dir = project.cache.join("fixtures");
    make_dir(&dir)?;
    let path = dir.join(format!("{}-{}-{}.tar", fixture.name, arch.name(), key(fixture, &debs)));
    if !path.is_file() {
        let layers = (fixture.layers)(fixture, &debs)?;
        let archive = oci::archive(fixture.name, debian_arch(arch), &fixture.start, &layers)
            .map_err(TaskError::io("create", &path))?;
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        fs::write(&partial, archive).map_err(TaskError::io("create", &partial))?;
        fs::rename(&partial, &path).map_err(TaskError::io("create", &path))?;
    }
    Ok(path)
}

/// Package files are named by version, so their names stand for their content.
fn key(fixture: &Fixture, debs: &[PathBuf]) -> String {
    let names = debs.iter().filter_map(|deb| deb.file_name()).map(|name| name.to_string_lossy().into_owned());
    let text = names.collect::<Vec<_>>().join("\n");
    let start = format!("{:?} {:?}", fixture.start, fixture.files);
    let own = [PASSWD, GROUP].concat() + &APPLETS.concat();
    hash_parts(&[RECIPE, text.as_bytes(), start.as_bytes(), own.as_bytes()])[..24].to_owned()
}

/// Libraries, server, site: three layers, so that a changed page does not move the libraries again.
fn web_layers(fixture: &Fixture, debs: &[PathBuf]) -> Result<Vec<Layer>, TaskError> {
    let (server_deb, library_debs) = split_first(debs)?;
    let (mut libraries, mut server, mut site) = (Layer::default(), Layer::default(), Layer::default());
    for deb in library_debs {
        libraries.package(deb, is_library)?;
    }
    server.package(server_deb, |path| {
        matches!(path, "usr/sbin/lighttpd" | "usr/lib/lighttpd/mod_accesslog.so")
    })?;
    add_files(&mut site, fixture);
    site.directory("tmp", 0o1777);
    site.directory("var/tmp", 0o1777);
    Ok(vec![libraries, server, site])
}

/// The fixture's own files, and who is who.
pub(crate) fn add_files(layer: &mut Layer, fixture: &Fixture) {
    let everybody = [("etc/passwd", PASSWD), ("etc/group", GROUP)];
    everybody.iter().chain(fixture.files).for_each(|(path, text)| layer.file(path, *text));
}

/// A small shell at /bin, from busybox-static.
pub(crate) fn add_shell(layer: &mut Layer, deb: &Path) -> Result<(), TaskError> {
    layer.package(deb, |path| path == BUSYBOX)?;
    APPLETS.iter().for_each(|applet| layer.symlink(&format!("bin/{applet}"), "busybox"));
    Ok(())
}

pub(crate) fn split_first(debs: &[PathBuf]) -> Result<(&Path, &[PathBuf]), TaskError> {
    let (first, rest) =
        debs.split_first().ok_or_else(|| TaskError::Say("a fixture has no package".into()))?;
    Ok((first, rest))
}

/// Shared libraries and the loader; not the tables of character sets, which are larger than all the rest.
fn is_library(path: &str) -> bool {
    ["lib/", "lib64/", "usr/lib/"].iter().any(|prefix| path.starts_with(prefix))
        && path.contains(".so")
        && !path.contains("/gconv/")
}

fn client_layers(fixture: &Fixture, debs: &[PathBuf]) -> Result<Vec<Layer>, TaskError> {
    let (deb, _) = split_first(debs)?;
    let (mut program, mut links) = (Layer::default(), Layer::default());
    program.package(deb, |path| path == BUSYBOX)?;
    for applet in APPLETS {
        links.symlink(&format!("bin/{applet}"), "busybox");
    }
    add_files(&mut links, fixture);
    links.directory("tmp", 0o1777);
    Ok(vec![program, links])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_kept_and_character_sets_are_not() {
        for path in [
            "lib/x86_64-linux-gnu/libc.so.6",
            "lib64/ld-linux-x86-64.so.2",
            "usr/lib/x86_64-linux-gnu/libnettle.so.8",
        ] {
            assert!(is_library(path), "{path}");
        }
        for path in [
            "usr/lib/x86_64-linux-gnu/gconv/IBM1004.so",
            "usr/share/doc/libc6/copyright",
            "etc/ld.so.conf.d/x",
        ] {
            assert!(!is_library(path), "{path}");
        }
    }

    #[test]
    fn the_key_follows_versions_and_start() {
        let [web, client] = &FIXTURES;
        let one = [PathBuf::from("/a/lighttpd_1_amd64.deb")];
        let two = [PathBuf::from("/a/lighttpd_2_amd64.deb")];
        assert_eq!(key(web, &one), key(web, &[PathBuf::from("/b/lighttpd_1_amd64.deb")]));
        assert_ne!(key(web, &one), key(web, &two));
        assert_ne!(key(web, &one), key(client, &one));
    }

    #[test]
    fn an_archive_is_the_same_every_time_and_its_parts_name_each_other() {
        let mut layer = Layer::default();
        layer.file("etc/hello", "hello");
        let [web, _] = &FIXTURES;
        let make = || oci::archive("web", "amd64", &web.start, std::slice::from_ref(&layer)).unwrap();
        let archive = make();
        assert_eq!(archive, make());
        let mut entries = tar::Archive::new(archive.as_slice());
        let names: Vec<String> = entries
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
        assert_eq!(names.len(), 6, "layer, configuration and manifest: {names:?}");
    }
}
