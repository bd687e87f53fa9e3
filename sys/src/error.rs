//! One variant per system call, so that an error always says which call failed.
use nix::errno::Errno;

macro_rules! errors {
    ($($variant:ident $call:literal),+ $(,)?) => {
        /// A system call that failed, with its errno.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        pub enum SysError {
            $(
                #[doc = concat!("`", $call, "` failed.")]
                #[error("{} failed: {}", $call, .0.desc())]
                $variant(Errno),
            )+
        }

        impl SysError {
            /// Why the call failed.
            #[must_use]
            pub fn errno(self) -> Errno {
                match self {
                    $(Self::$variant(errno) => errno,)+
                }
            }

            /// Name of the call.
            #[must_use]
            pub fn call(self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $call,)+
                }
            }
        }
    };
}

errors! {
    Adjtimex "adjtimex",
    Bpf "bpf",
    CapBoundingDrop "prctl(PR_CAPBSET_DROP)",
    CapGet "capget",
    CapSet "capset",
    Chdir "chdir",
    ClockGettime "clock_gettime",
    ClockSettime "clock_settime",
    Clone "clone",
    Clone3 "clone3",
    CloseRange "close_range",
    ControllingTerminal "ioctl(TIOCSCTTY)",
    Dup "dup",
    Fcntl "fcntl",
    Fork "fork",
    Ioctl "ioctl",
    Keyctl "keyctl",
    MemfdCreate "memfd_create",
    MountSetattr "mount_setattr",
    MoveMount "move_mount",
    Open "open",
    OpenTree "open_tree",
    Openat2 "openat2",
    Openpty "openpty",
    PeerCredentials "getsockopt(SO_PEERCRED)",
    PidfdOpen "pidfd_open",
    PidfdSendSignal "pidfd_send_signal",
    Pipe2 "pipe2",
    PivotRoot "pivot_root",
    Prctl "prctl",
    Read "read",
    Reboot "reboot",
    Recvmsg "recvmsg",
    Seals "fcntl(F_ADD_SEALS)",
    Seccomp "seccomp",
    Sendmsg "sendmsg",
    Setns "setns",
    SignalMask "sigprocmask",
    Signalfd "signalfd",
    Socket "socket",
    Socketpair "socketpair",
    Umount "umount2",
    Waitid "waitid",
    Watchdog "ioctl(WDIOC)",
    WindowSize "ioctl(TIOCSWINSZ)",
    Write "write",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_call_and_reason() {
        let error = SysError::Clone3(Errno::EPERM);
        assert_eq!(error.to_string(), "clone3 failed: Operation not permitted");
        assert_eq!((error.errno(), error.call()), (Errno::EPERM, "clone3"));
    }
}
