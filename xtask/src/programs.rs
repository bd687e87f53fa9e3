//! Container images of what people really run, for the tests of containers: Debian's packages, each with the libraries that
//! its programs name (DT_NEEDED), taken apart without their scripts. For this machine's processor only.
use std::path::PathBuf;

use wherry_images::disk::Arch;

use crate::error::TaskError;
use crate::fixtures::{self, Fixture, add_files, add_shell, split_first};
use crate::layer::Layer;
use crate::oci::Start;
use crate::project::{Project, make_dir};

/// Two workers as another user, threads for files, everything else as Debian compiled it.
const NGINX_CONF: &str = "daemon off;
user nobody nogroup;
worker_processes 2;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    sendfile on;
    server { listen 80; root /srv; location /data { aio threads; directio 4k; } }
}
";

const POSTGRES_PASSWD: &str = "root:x:0:0::/root:/bin/sh\npostgres:x:70:70::/tmp:/bin/sh\n";
const POSTGRES_GROUP: &str = "root:x:0:\npostgres:x:70:\n";

/// The shell first, then the program, then its libraries. libgcc-s1 is named by nobody: pthread_exit(3) loads it.
const PROGRAMS: [Fixture; 4] = [
    Fixture {
        name: "nginx",
        packages: &[
            "busybox-static",
            "nginx",
            "libc6",
            "libcrypt1",
            "libgcc-s1",
            "libpcre2-8-0",
            "libssl3",
            "zlib1g",
        ],
        start: Start {
            command: &["/usr/sbin/nginx", "-c", "/etc/nginx.conf"],
            path: "/usr/sbin:/bin",
            ports: &[80],
        },
        files: &[("etc/nginx.conf", NGINX_CONF), ("srv/index.html", "from nginx\n")],
        layers,
    },
    Fixture {
        name: "redis",
        packages: &[
            "busybox-static",
            "redis-server",
            "redis-tools",
            "libatomic1",
            "libc6",
            "libcap2",
            "libgcc-s1",
            "libgcrypt20",
            "libgpg-error0",
            "libjemalloc2",
            "liblz4-1",
            "liblzf1",
            "liblzma5",
            "libssl3",
            "libstdc++6",
            "libsystemd0",
            "libzstd1",
        ],
        start: Start { command: &["/usr/bin/redis-server"], path: "/usr/bin:/bin", ports: &[6379] },
        files: &[],
        layers,
    },
    Fixture {
        name: "postgres",
        packages: &[
            "busybox-static",
            "postgresql-15",
            "postgresql-client-15",
            "libaudit1",
            "libc6",
            "libcap-ng0",
            "libcap2",
            "libcom-err2",
            "libffi8",
            "libgcc-s1",
            "libgcrypt20",
            "libgmp10",
            "libgnutls30",
            "libgpg-error0",
            "libgssapi-krb5-2",
            "libhogweed6",
            "libicu72",
            "libidn2-0",
            "libk5crypto3",
            "libkeyutils1",
            "libkrb5-3",
            "libkrb5support0",
            "libldap-2.5-0",
            "liblz4-1",
            "liblzma5",
            "libnettle8",
            "libp11-kit0",
            "libpam0g",
            "libpcre2-8-0",
            "libpq5",
            "libreadline8",
            "libsasl2-2",
            "libselinux1",
            "libssl3",
            "libstdc++6",
            "libsystemd0",
            "libtasn1-6",
            "libtinfo6",
            "libunistring2",
            "libuuid1",
            "libxml2",
            "libzstd1",
            "tzdata",
            "zlib1g",
        ],
        start: Start {
            command: &["/usr/lib/postgresql/15/bin/postgres", "-D", "/tmp/db"],
            path: "/usr/lib/postgresql/15/bin:/bin",
            ports: &[5432],
        },
        files: &[("etc/passwd", POSTGRES_PASSWD), ("etc/group", POSTGRES_GROUP)],
        layers,
    },
    Fixture {
        name: "python",
        packages: &[
            "busybox-static",
            "python3.11-minimal",
            "libpython3.11-minimal",
            "libpython3.11-stdlib",
            "libbz2-1.0",
            "libc6",
            "libcrypt1",
            "libexpat1",
            "libffi8",
            "libgcc-s1",
            "liblzma5",
            "libncursesw6",
            "libreadline8",
            "libsqlite3-0",
            "libssl3",
            "libtinfo6",
            "libuuid1",
            "zlib1g",
        ],
        start: Start { command: &["/usr/bin/python3.11"], path: "/usr/bin:/bin", ports: &[] },
        files: &[],
        layers,
    },
];

/// Puts the archives into `fixtures/` of the output for `arch`.
pub(crate) fn run(project: &Project, arch: Arch) -> Result<(), TaskError> {
    let out = project.output(arch).join("fixtures");
    make_dir(&out)?;
    PROGRAMS.iter().try_for_each(|program| fixtures::place(project, program, arch, &out))
}

/// All packages as one layer, then the image's own files.
fn layers(fixture: &Fixture, debs: &[PathBuf]) -> Result<Vec<Layer>, TaskError> {
    let (shell, programs) = split_first(debs)?;
    let (mut packages, mut own) = (Layer::default(), Layer::default());
    for deb in programs {
        packages.package(deb, is_used)?;
    }
    add_shell(&mut packages, shell)?;
    add_files(&mut own, fixture);
    for directory in ["tmp", "var/tmp"] {
        own.directory(directory, 0o1777);
    }
    for directory in ["data", "run", "root", "var/lib/nginx", "var/log/nginx"] {
        own.directory(directory, 0o755);
    }
    Ok(vec![packages, own])
}

/// Neither what people read, nor the tables of character sets, nor PostgreSQL's compiler with its 100 MB of LLVM.
fn is_used(path: &str) -> bool {
    let unread =
        ["usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/icons/"];
    !unread.iter().any(|prefix| path.starts_with(prefix))
        && !["/gconv/", "/bitcode/", "llvmjit"].iter().any(|part| path.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_their_data_are_kept() {
        for path in ["usr/lib/postgresql/15/bin/postgres", "usr/share/zoneinfo/UTC", "usr/sbin/nginx"] {
            assert!(is_used(path), "{path}");
        }
        for path in ["usr/share/doc/nginx/copyright", "usr/lib/postgresql/15/lib/bitcode/x.bc"] {
            assert!(!is_used(path), "{path}");
        }
    }

    #[test]
    fn every_image_has_a_shell_and_a_name_of_its_own() {
        let names: std::collections::BTreeSet<&str> = PROGRAMS.iter().map(|program| program.name).collect();
        assert_eq!(names.len(), PROGRAMS.len());
        assert!(PROGRAMS.iter().all(|program| program.packages[0] == "busybox-static"));
    }
}
