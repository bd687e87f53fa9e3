use super::*;
use crate::container::seccomp::tests::run_on;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ERRNO: u32 = libc::SECCOMP_RET_ERRNO;

fn of(json: &str) -> Result<Option<Filter>, String> {
    plan(&serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
}

fn answer(filter: &Filter, number: i64, arguments: [u64; 6]) -> u32 {
    run_on(ARCHITECTURE, &filter.instructions, number, arguments).0
}

#[test]
fn rules_hold_for_their_calls_only() {
    let filter = of(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
        {"names":["getcwd","no_such_call"],"action":"SCMP_ACT_ERRNO"},
        {"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
        {"names":["sync"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#);
    let filter = filter.unwrap().unwrap();
    assert!(filter.flags.log && !filter.flags.all_threads);
    let none = [0; 6];
    assert_eq!(answer(&filter, libc::SYS_getcwd, none), ERRNO | 1);
    assert_eq!(answer(&filter, libc::SYS_getpid, none), ERRNO | 38);
    assert_eq!(answer(&filter, libc::SYS_sync, none), libc::SECCOMP_RET_KILL_PROCESS);
    for number in [0, libc::SYS_getcwd + 1, libc::SYS_getcwd - 1, 2000] {
        assert_eq!(answer(&filter, number, none), ALLOW, "{number}");
    }
    let other = run_on(0x1234, &filter.instructions, libc::SYS_read, none).0;
    assert_eq!(other, libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn arguments_are_compared_as_64_bits() {
    let big = 5 << 32 | 7;
    for (operator, holds) in [
        ("EQ", [false, false, true, false, false]),
        ("NE", [true, true, false, true, true]),
        ("LT", [true, true, false, false, false]),
        ("LE", [true, true, true, false, false]),
        ("GT", [false, false, false, true, true]),
        ("GE", [false, false, true, true, true]),
    ] {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["lseek"],"action":"SCMP_ACT_ALLOW",
            "args":[{{"index":1,"value":{big},"op":"SCMP_CMP_{operator}"}}]}}]}}"#
        );
        let filter = of(&json).unwrap().unwrap();
        let values = [4 << 32 | 9, 5 << 32 | 6, big, 5 << 32 | 8, 6 << 32];
        for (value, holds) in values.into_iter().zip(holds) {
            let expected = if holds { ALLOW } else { ERRNO | 1 };
            assert_eq!(
                answer(&filter, libc::SYS_lseek, [0, value, 0, 0, 0, 0]),
                expected,
                "{operator} {value:x}"
            );
        }
    }
}

#[test]
fn conditions_are_joined_and_alternatives_are_not() {
    let filter = of(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"},{"index":1,"value":3,"op":"SCMP_CMP_EQ"}]},
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
        {"names":["personality"],"action":"SCMP_ACT_TRAP"}]}"#,
    );
    let filter = filter.unwrap().unwrap();
    let clone = |a, b| answer(&filter, libc::SYS_clone, [a, b, 0, 0, 0, 0]);
    assert_eq!((clone(17, 3), clone(17, 4), clone(0x1000_0000, 3)), (ALLOW, ERRNO | 1, ERRNO | 1));
    let personality = |a| answer(&filter, libc::SYS_personality, [a, 0, 0, 0, 0, 0]);
    let trap = libc::SECCOMP_RET_TRAP;
    assert_eq!((personality(0), personality(8), personality(9)), (ALLOW, ALLOW, trap));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn other_kinds_of_programs_have_their_own_numbers() {
    let json = |architectures: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":[{architectures}],
            "syscalls":[{{"names":["getpid"],"action":"SCMP_ACT_ERRNO"}}]}}"#
        )
    };
    let all =
        of(&json(r#""SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_MIPS""#)).unwrap().unwrap();
    let run =
        |filter: &Filter, architecture, number| run_on(architecture, &filter.instructions, number, [0; 6]).0;
    let x32 = 0x4000_0000;
    assert_eq!((run(&all, 0x4000_0003, 20), run(&all, 0x4000_0003, 39)), (ERRNO | 1, ALLOW));
    assert_eq!((run(&all, ARCHITECTURE, x32 | 39), run(&all, ARCHITECTURE, x32 | 40)), (ERRNO | 1, ALLOW));
    let native = of(&json("")).unwrap().unwrap();
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    assert_eq!((run(&native, 0x4000_0003, 39), run(&native, ARCHITECTURE, x32 | 40)), (kill, kill));
    assert_eq!(run(&native, ARCHITECTURE, 39), ERRNO | 1);
}

#[test]
fn nonsense_is_refused_and_nothing_is_no_filter() {
    assert_eq!(of(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), Ok(None));
    for (json, says) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "notifications"),
        (r#"{"defaultAction":"SCMP_ACT_KILL","defaultErrnoRet":1}"#, "no errno"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "more than 4095"),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}"#,
            "without names",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "calls have 0 to 5",
        ),
    ] {
        assert!(of(json).unwrap_err().contains(says), "{json}");
    }
}
