//! A file's attributes as SFTP has them, and a line about it as `ls -l` has it.
use super::wire::{Attributes, NamedFile};
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

/// Times before 1970 or after 2106 are not to be had in this version of the protocol.
fn seconds(time: i64) -> u32 {
    u32::try_from(time.max(0)).unwrap_or(u32::MAX)
}

/// What SFTP tells of a file.
pub(super) fn attributes(meta: &Metadata) -> Attributes {
    Attributes {
        size: Some(meta.size()),
        owner: Some((meta.uid(), meta.gid())),
        mode: Some(meta.mode()),
        times: Some((seconds(meta.atime()), seconds(meta.mtime()))),
    }
}

/// An entry of a directory; of one that has gone meanwhile, its name.
pub(super) fn entry(name: &OsStr, meta: Option<&Metadata>) -> NamedFile {
    let name = name.as_bytes().to_vec();
    let Some(meta) = meta else { return bare(name) };
    let mut long = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        permissions(meta.mode()),
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        meta.size(),
        date(seconds(meta.mtime())),
    )
    .into_bytes();
    long.extend(&name);
    NamedFile { name, long, attributes: attributes(meta) }
}

/// A name alone.
pub(super) fn bare(name: Vec<u8>) -> NamedFile {
    NamedFile { long: name.clone(), name, attributes: Attributes::default() }
}

fn permissions(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::RegularFile | FileType::Unknown => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letters) in
        [(6, 0o4000, ['s', 'S']), (3, 0o2000, ['s', 'S']), (0, 0o1000, ['t', 'T'])]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        let [both, alone] = letters;
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => both,
            (true, false) => alone,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `Nov 26  2026`: the form of `ls -l` for what is not of these days. Boards need not know today's date.
fn date(seconds: u32) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // Days since 1 March 0000 of the proleptic Gregorian calendar, in eras of 400 years (days_from_civil, inverted).
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 2, 0) } else { (month - 10, 1) };
    let name = MONTHS.get(usize::try_from(month).unwrap_or_default()).copied().unwrap_or_default();
    format!("{name} {day_of_month:>2}  {}", era * 400 + year + next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_names() {
        for (seconds, text) in [
            (0, "Jan  1  1970"),
            (951_782_400, "Feb 29  2000"),
            (951_868_800, "Mar  1  2000"),
            (1_764_115_199, "Nov 25  2025"),
            (1_764_115_200, "Nov 26  2025"),
            (u32::MAX, "Feb  7  2106"),
        ] {
            assert_eq!(date(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn modes_have_letters() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o041_777, "drwxrwxrwt"),
            (0o104_711, "-rws--x--x"),
            (0o102_640, "-rw-r-S---"),
            (0o120_777, "lrwxrwxrwx"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }
}
