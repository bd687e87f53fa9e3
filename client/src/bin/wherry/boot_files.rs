//! Files of this computer that a container finds when it starts: `run -f FILE:PATH`.
use crate::context::CliError;
use std::io;
use std::path::{Component, Path, PathBuf};
use wherry_protocol::message::{ContainerSpec, Setting};
use wherry_protocol::policy::MAX_FILES_BYTES;

/// What the container's own surroundings decide, and the flag that does.
const DECIDED: [(&str, &str); 3] =
    [("etc/hosts", "--add-host"), ("etc/hostname", "--hostname"), ("etc/resolv.conf", "--dns")];
/// Places that are not on the container's disk.
const ELSEWHERE: [&str; 3] = ["proc", "sys", "dev"];

/// One file or directory here, and its path there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootFile {
    from: PathBuf,
    /// From the root, without the first slash.
    to: PathBuf,
}

/// `nginx.conf:/etc/nginx/nginx.conf`; `page.html:/srv/` keeps the name.
pub(crate) fn parse(text: &str) -> Result<BootFile, String> {
    let error = || {
        format!(
            "'{text}' is not a file for a container: use file:/path, as in nginx.conf:/etc/nginx/nginx.conf"
        )
    };
    let (from, to) = text.rsplit_once(":/").ok_or_else(error)?;
    let from = PathBuf::from(from);
    if from.as_os_str().is_empty() || text.contains('\0') {
        return Err(error());
    }
    let mut path = PathBuf::new();
    for component in Path::new(to).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(error()),
        }
    }
    if to.is_empty() || to.ends_with('/') {
        path.push(from.file_name().ok_or_else(error)?);
    }
    if let Some(place) = ELSEWHERE.iter().find(|place| path.starts_with(place)) {
        return Err(format!("'/{}' is in /{place}, which is not on the container's disk", path.display()));
    }
    if let Some((_, flag)) = DECIDED.iter().find(|(decided, _)| path == Path::new(decided)) {
        return Err(format!("'/{}' is made anew for each container: use {flag}", path.display()));
    }
    Ok(BootFile { from, to: path })
}

/// Refuses files that would be hidden by what is mounted over them.
pub(crate) fn check(files: &[BootFile], spec: &ContainerSpec) -> Result<(), String> {
    let volumes = spec.mounts.iter().map(|mount| mount.path.as_str());
    let memory = spec.settings.iter().filter_map(|setting| match setting {
        Setting::Tmpfs { path, .. } => Some(path.as_str()),
        _ => None,
    });
    for place in volumes.chain(memory) {
        let below = Path::new(place.trim_start_matches('/'));
        if let Some(hidden) = files.iter().find(|file| file.to.starts_with(below)) {
            return Err(format!(
                "'/{}' would be hidden by what is mounted at {place}: copy it there with `wherry cp` once it runs",
                hidden.to.display()
            ));
        }
    }
    Ok(())
}

/// One archive of them all.
pub(crate) fn pack(files: &[BootFile]) -> Result<Vec<u8>, CliError> {
    let mut archive = tar::Builder::new(Bounded(Vec::new()));
    // What a link here leads to is meant, as with `cp -L`: the link's target is not there.
    archive.follow_symlinks(true);
    for file in files {
        let failed = |error: io::Error| CliError::Usage(format!("{}: {error}", file.from.display()));
        let meta = std::fs::metadata(&file.from).map_err(failed)?;
        if meta.is_dir() {
            archive.append_dir_all(&file.to, &file.from).map_err(failed)?;
        } else if meta.is_file() {
            archive.append_path_with_name(&file.from, &file.to).map_err(failed)?;
        } else {
            return Err(CliError::Usage(format!("{}: it is no file and no directory", file.from.display())));
        }
    }
    let packed = archive.into_inner().map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(packed.0)
}

/// Takes no more than a container may be given.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > MAX_FILES_BYTES {
            return Err(io::Error::other(format!(
                "the files are more than the {} MiB that a container may be given: make an image of them",
                MAX_FILES_BYTES >> 20
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_protocol::message::VolumeMount;

    fn file(from: &str, to: &str) -> BootFile {
        BootFile { from: from.into(), to: to.into() }
    }

    #[test]
    fn names_are_read_strictly() {
        for (text, from, to) in [
            ("a.conf:/etc/a.conf", "a.conf", "etc/a.conf"),
            ("x/a.conf:/etc/", "x/a.conf", "etc/a.conf"),
            ("./a:b:/c", "./a:b", "c"),
            ("a:/", "a", "a"),
            ("a:/./b//c", "a", "b/c"),
        ] {
            assert_eq!(parse(text).unwrap(), file(from, to), "{text}");
        }
        for (text, words) in [
            ("a", "not a file for a container"),
            ("a:b", "not a file for a container"),
            (":/b", "not a file for a container"),
            ("a:/b/../c", "not a file for a container"),
            ("..:/", "not a file for a container"),
            ("a:/proc/x", "not on the container's disk"),
            ("a:/dev/", "not on the container's disk"),
            ("a:/etc/hosts", "use --add-host"),
            ("resolv.conf:/etc/", "use --dns"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_would_be_hidden_is_refused() {
        let mount = VolumeMount { volume: "data".parse().unwrap(), path: "/srv".into(), read_only: false };
        let tmpfs = Setting::Tmpfs { path: "/tmp/".into(), size_bytes: 1 };
        let spec = ContainerSpec { mounts: vec![mount], settings: vec![tmpfs], ..ContainerSpec::default() };
        assert!(check(&[file("a", "srv2/a"), file("a", "tmpx")], &spec).is_ok());
        assert!(check(&[file("a", "srv/a")], &spec).unwrap_err().contains("mounted at /srv"));
        assert!(check(&[file("a", "tmp/a")], &spec).unwrap_err().contains("mounted at /tmp/"));
    }

    #[test]
    fn trees_and_files_go_into_one_archive() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        std::fs::create_dir(at("tree")).unwrap();
        std::fs::write(at("tree/file"), "x").unwrap();
        std::os::unix::fs::symlink("tree/file", at("link")).unwrap();
        let files = [
            BootFile { from: at("tree"), to: "srv/tree".into() },
            BootFile { from: at("link"), to: "etc/conf".into() },
        ];
        let bytes = pack(&files).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("srv/tree/"), Path::new("srv/tree/file"), Path::new("etc/conf")]);
        let missing = BootFile { from: at("none"), to: "x".into() };
        assert!(pack(&[missing]).unwrap_err().to_string().contains("none: No such file"));
        let pipe = BootFile { from: "/dev/null".into(), to: "x".into() };
        assert!(pack(&[pipe]).unwrap_err().to_string().contains("no file and no directory"));
    }

    #[test]
    fn too_much_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let large = base.path().join("large");
        // Not sparse: holes take no room in an archive.
        std::fs::write(&large, vec![1; usize::try_from(MAX_FILES_BYTES).unwrap()]).unwrap();
        let error = pack(&[BootFile { from: large, to: "x".into() }]).unwrap_err().to_string();
        assert!(error.contains("more than the 16 MiB"), "{error}");
    }
}
