//! `user[:group]` to numbers, by the image's own /etc/passwd and /etc/group. Pure; the text is whatever the image holds.
use std::fmt;

/// Longest passwd or group file read, in bytes: some 20 000 accounts.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
/// Supplementary groups at most (NGROUPS_MAX is 65536; no image needs more than a few).
const MAX_GROUPS: usize = 256;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The user or group that was asked for is not in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchUser(pub String);

impl fmt::Display for NoSuchUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no user or group '{}'", self.0)
    }
}

impl std::error::Error for NoSuchUser {}

/// Resolves `who` (empty: root) as Docker does: names by the files; numbers as they are, and an entry of the file with
/// that number completes them.
///
/// # Errors
/// [`NoSuchUser`] for a name that is not there, or a number above the kernel's range.
pub fn resolve(who: &str, passwd: &str, group: &str) -> Result<Identity, NoSuchUser> {
    let (user, wanted_group) = match who.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (who, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let account = account(user, passwd);
    let (uid, gid, name, home) = match account {
        Some(account) => (account.uid, account.gid, account.name, account.home),
        None => (number(user).ok_or_else(|| NoSuchUser(user.into()))?, 0, "", ""),
    };
    let (gid, groups) = match wanted_group {
        Some(wanted) => (group_number(wanted, group).ok_or_else(|| NoSuchUser(wanted.into()))?, Vec::new()),
        None => (gid, memberships(name, group)),
    };
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(Identity { uid, gid, groups, home: home.to_owned() })
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn account<'a>(user: &str, passwd: &'a str) -> Option<Account<'a>> {
    let wanted = number(user);
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        (name == user || Some(uid) == wanted).then_some(Account { name, uid, gid, home })
    })
}

fn group_number(wanted: &str, group: &str) -> Option<u32> {
    let by_name = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| number(fields.nth(1)?)).flatten()
    });
    by_name.or_else(|| number(wanted))
}

fn memberships(name: &str, group: &str) -> Vec<u32> {
    let member = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let gid = number(fields.next()?)?;
        fields.next()?.split(',').any(|member| !name.is_empty() && member == name).then_some(gid)
    };
    group.lines().filter_map(member).take(MAX_GROUPS).collect()
}

/// An id; the highest number means "unchanged" to the kernel and is none.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:33:www:/var/www:/bin/false\nnohome:x:7:8\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nlogs:x:40:other,www\nssl:x:41:www\n";

    fn ids(who: &str) -> Result<(u32, u32, Vec<u32>, String), NoSuchUser> {
        resolve(who, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups, i.home))
    }

    #[test]
    fn as_docker_resolves_them() {
        for (who, uid, gid, groups, home) in [
            ("", 0, 0, vec![], "/root"),
            ("www", 33, 33, vec![40, 41], "/var/www"),
            ("33", 33, 33, vec![40, 41], "/var/www"),
            ("www:logs", 33, 40, vec![], "/var/www"),
            ("www:1234", 33, 1234, vec![], "/var/www"),
            ("1000", 1000, 0, vec![], "/"),
            ("1000:1000", 1000, 1000, vec![], "/"),
            (":ssl", 0, 41, vec![], "/root"),
            ("nohome", 7, 8, vec![], "/"),
        ] {
            assert_eq!(ids(who), Ok((uid, gid, groups, home.to_owned())), "{who}");
        }
        for (who, missing) in [
            ("nobody", "nobody"),
            ("www:wheel", "wheel"),
            ("4294967295", "4294967295"),
            ("-1", "-1"),
            ("+5", "+5"),
        ] {
            assert_eq!(ids(who), Err(NoSuchUser(missing.to_owned())));
        }
        assert_eq!(resolve("", "", "").unwrap().home, "/");
    }

    proptest! {
        #[test]
        fn any_files_are_survived(who in ".{0,20}", passwd in "[a-z0-9:,\n]{0,200}", group in "[a-z0-9:,\n]{0,200}") {
            if let Ok(identity) = resolve(&who, &passwd, &group) {
                prop_assert!(identity.groups.len() <= MAX_GROUPS && identity.home.starts_with('/'));
            }
        }
    }
}
