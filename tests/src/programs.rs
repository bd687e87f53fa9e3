//! Programs of this host for a guest: where they are and what they need.
use crate::failure::Failure;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a tool of this host is.
///
/// # Errors
/// When it is not installed.
pub fn tool(name: &str) -> Result<PathBuf, Failure> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .map(|directory| Path::new(directory).join(name))
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| Failure::Unexpected(format!("{name} is not installed: `cargo xtask setup` does that")))
}

/// The libraries and the loader that a program needs, as its loader says.
///
/// # Errors
/// When the loader cannot be asked.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>, Failure> {
    let output = Command::new("ldd").arg(program).output().map_err(Failure::io("run ldd"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// A program without what only a debugger needs.
///
/// # Errors
/// When `strip` fails.
pub fn stripped(program: &Path) -> Result<Vec<u8>, Failure> {
    let to = tempfile::NamedTempFile::new().map_err(Failure::io("make a temporary file"))?;
    let mut strip = Command::new("strip");
    let status = strip.arg("-o").arg(to.path()).arg(program).status().map_err(Failure::io("run strip"))?;
    if !status.success() {
        return Err(Failure::Unexpected(format!("strip {} failed", program.display())));
    }
    read(to.path())
}

/// These files for a guest, by the paths that they have here without the first slash.
///
/// # Errors
/// When one cannot be read.
pub fn same_place<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    paths.into_iter().map(|path| Ok((inside(path), read(path)?))).collect()
}

/// The path in the archive of what has this absolute path.
#[must_use]
pub fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(Failure::file("read", path))
}
