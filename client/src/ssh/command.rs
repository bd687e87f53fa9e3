//! What a session of SSH runs in the container. Pure.
use russh::Sig;

/// Finds the user's shell in /etc/passwd, where it is one that knows `-c`, or takes /bin/sh, and runs it as sshd(8) would:
/// without arguments, or with `-c` and the command. It needs no program but the shell itself.
const FIND_SHELL: &str = r#"while read -r key uid rest; do [ "$key" = Uid: ] && break; done </proc/self/status
while IFS=: read -r name x id gid gecos home shell; do [ "$id" = "$uid" ] && break; shell=; done 2>/dev/null </etc/passwd
case "$shell" in
*/ash | */bash | */dash | */fish | */ksh | */mksh | */zsh) [ -x "$shell" ] || shell=/bin/sh ;;
*) shell=/bin/sh ;;
esac
export SHELL="$shell"
[ $# = 0 ] && exec "$shell"
exec "$shell" -c "$1""#;

/// The arguments that run a command, or a shell to talk to.
pub(super) fn in_shell(command: Option<String>) -> Vec<String> {
    let words = ["/bin/sh", "-c", FIND_SHELL, "sh"].map(str::to_owned);
    words.into_iter().chain(command).collect()
}

/// Linux numbers (signal(7)) of the names of RFC 4254, section 6.10.
const SIGNALS: [(u8, Sig); 12] = [
    (1, Sig::HUP),
    (2, Sig::INT),
    (3, Sig::QUIT),
    (4, Sig::ILL),
    (6, Sig::ABRT),
    (8, Sig::FPE),
    (9, Sig::KILL),
    (10, Sig::USR1),
    (11, Sig::SEGV),
    (13, Sig::PIPE),
    (14, Sig::ALRM),
    (15, Sig::TERM),
];
/// A name of the RFC that the library has none for.
const USR2: (u8, &str) = (12, "USR2");

/// The number of a signal that a client sends.
pub(super) fn signal_number(signal: &Sig) -> Option<u8> {
    match signal {
        Sig::Custom(name) if name == USR2.1 => Some(USR2.0),
        known => {
            let same = |signal: &Sig| std::mem::discriminant(signal) == std::mem::discriminant(known);
            SIGNALS.iter().find(|(_, signal)| same(signal)).map(|(number, _)| *number)
        }
    }
}

/// The name of a signal that ended a process; of one without, a local name (RFC 4254, section 6.10).
pub(super) fn signal_name(number: u8) -> Sig {
    let known = SIGNALS.iter().find(|(known, _)| *known == number).map(|(_, signal)| signal.clone());
    known.unwrap_or_else(|| match number {
        number if number == USR2.0 => Sig::Custom(USR2.1.into()),
        number => Sig::Custom(format!("{number}@wherry")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_script_runs_what_it_is_given() {
        let run = |command: Option<&str>, input: &str| {
            let words = in_shell(command.map(str::to_owned));
            let mut program = Command::new(&words[0]);
            program
                .args(&words[1..])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped());
            let mut child = program.spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(run(Some("echo \"$#\" 'a  b'; exit 7"), ""), (Some(7), "0 a  b\n".into()));
        assert_eq!(run(None, "echo from stdin; exit 3"), (Some(3), "from stdin\n".into()));
        let (_, shell) = run(Some("echo $SHELL"), "");
        assert!(shell.starts_with('/') && !shell.contains("nologin"), "{shell}");
    }

    #[test]
    fn signals_have_one_name_each() {
        for number in 1..=64 {
            let name = signal_name(number);
            let back = signal_number(&name);
            assert!(back.is_none() || back == Some(number), "{number}");
        }
        assert!(matches!(signal_name(9), Sig::KILL));
        assert_eq!(signal_number(&Sig::Custom("USR2".into())), Some(12));
        assert_eq!(signal_number(&Sig::Custom("NONSENSE".into())), None);
    }
}
