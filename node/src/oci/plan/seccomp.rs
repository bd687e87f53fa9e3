//! `linux.seccomp` to a filter: every architecture that is named gets the same rules with its own numbers.
use super::super::error::OciError;
use crate::container::seccomp::tree::{Answer, compile_all};
use crate::container::seccomp::{ARCHITECTURE, Instruction};
use nix::libc;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use std::collections::BTreeMap;
use std::str::FromStr;
use wherry_sys::seccomp::Flags;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Filter {
    pub(in super::super) instructions: Vec<Instruction>,
    pub(in super::super) flags: Flags,
}

/// Those whose programs run here.
#[cfg(target_arch = "x86_64")]
pub(in super::super) const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
/// Those whose programs run here.
#[cfg(target_arch = "aarch64")]
pub(in super::super) const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];

/// `BPF_MAXINSNS` (linux/bpf_common.h).
const MAX_INSTRUCTIONS: usize = 4096;
/// Highest errno (linux/err.h).
const MAX_ERRNO: u32 = 4095;
/// Arguments of a call.
const ARGUMENTS: usize = 6;

/// No filter if everything is allowed anyway.
///
/// # Errors
/// [`OciError::Config`], [`OciError::Unsupported`].
pub(super) fn plan(seccomp: &LinuxSeccomp) -> Result<Option<Filter>, OciError> {
    let syscalls = seccomp.syscalls().as_deref().unwrap_or_default();
    if seccomp.default_action() == LinuxSeccompAction::ScmpActAllow && syscalls.is_empty() {
        return Ok(None);
    }
    let rest = value(seccomp.default_action(), seccomp.default_errno_ret())?;
    let rules = syscalls.iter().map(rules).collect::<Result<Vec<_>, OciError>>()?;
    let rules: Vec<(&str, Rule)> = rules.into_iter().flatten().collect();
    let mut architectures = vec![(ARCHITECTURE, answers(&rules, rest, native_number))];
    for architecture in seccomp.architectures().iter().flatten() {
        add_foreign(*architecture, &rules, rest, &mut architectures);
    }
    let instructions = compile_all(&architectures);
    if instructions.len() > MAX_INSTRUCTIONS {
        let count = instructions.len();
        return Err(OciError::Config(format!(
            "linux.seccomp needs {count} instructions, more than {MAX_INSTRUCTIONS}"
        )));
    }
    Ok(Some(Filter { instructions, flags: flags(seccomp)? }))
}

fn flags(seccomp: &LinuxSeccomp) -> Result<Flags, OciError> {
    let mut flags = Flags::default();
    for flag in seccomp.flags().iter().flatten() {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags.log = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flags.all_threads = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags.speculation = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => return Err(notifications()),
        }
    }
    Ok(flags)
}

fn notifications() -> OciError {
    OciError::Unsupported("seccomp notifications (SCMP_ACT_NOTIFY)".into())
}

/// What the kernel is told for an action (linux/seccomp.h).
fn value(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, OciError> {
    let with_errno = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    if errno.is_some() && !with_errno {
        return Err(OciError::Config(
            "linux.seccomp has an errnoRet for an action that returns no errno".into(),
        ));
    }
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    if errno > MAX_ERRNO {
        return Err(OciError::Config(format!("linux.seccomp has errnoRet {errno}, more than {MAX_ERRNO}")));
    }
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Ok(libc::SECCOMP_RET_KILL_THREAD)
        }
        LinuxSeccompAction::ScmpActKillProcess => Ok(libc::SECCOMP_RET_KILL_PROCESS),
        LinuxSeccompAction::ScmpActTrap => Ok(libc::SECCOMP_RET_TRAP),
        LinuxSeccompAction::ScmpActErrno => Ok(libc::SECCOMP_RET_ERRNO | errno),
        LinuxSeccompAction::ScmpActTrace => Ok(libc::SECCOMP_RET_TRACE | errno),
        LinuxSeccompAction::ScmpActLog => Ok(libc::SECCOMP_RET_LOG),
        LinuxSeccompAction::ScmpActAllow => Ok(libc::SECCOMP_RET_ALLOW),
        LinuxSeccompAction::ScmpActNotify => Err(notifications()),
    }
}

/// If all conditions hold, `value` is the answer.
#[derive(Debug, Clone)]
struct Rule {
    conditions: Vec<Condition>,
    value: u32,
}

#[derive(Debug, Clone, Copy)]
struct Condition {
    argument: u32,
    operator: LinuxSeccompOperator,
    value: u64,
    second: u64,
}

fn rules(call: &LinuxSyscall) -> Result<Vec<(&str, Rule)>, OciError> {
    if call.names().is_empty() {
        return Err(OciError::Config("linux.seccomp.syscalls has an entry without names".into()));
    }
    let value = value(call.action(), call.errno_ret())?;
    let conditions = call.args().iter().flatten().map(condition).collect::<Result<Vec<_>, OciError>>()?;
    let twice =
        |one: &Condition| conditions.iter().filter(|other| other.argument == one.argument).count() > 1;
    // Several conditions for one argument are alternatives (as runc and crun have it, because of libseccomp).
    let sets: Vec<Vec<Condition>> = if conditions.iter().any(twice) {
        conditions.iter().map(|one| vec![*one]).collect()
    } else {
        vec![conditions]
    };
    let rules: Vec<Rule> = sets.into_iter().map(|conditions| Rule { conditions, value }).collect();
    let of = |name| rules.iter().map(move |rule| (name, rule.clone()));
    Ok(call.names().iter().flat_map(|name| of(name.as_str())).collect())
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, OciError> {
    let number = u32::try_from(argument.index()).ok().filter(|_| argument.index() < ARGUMENTS);
    let number = number.ok_or_else(|| {
        OciError::Config(format!("linux.seccomp has an argument {}, calls have 0 to 5", argument.index()))
    })?;
    Ok(Condition {
        argument: number,
        operator: argument.op(),
        value: argument.value(),
        second: argument.value_two().unwrap_or(0),
    })
}

#[cfg(target_arch = "x86_64")]
fn native_number(name: &str) -> Option<u32> {
    number(syscalls::x86_64::Sysno::from_str(name).ok()?.id())
}

#[cfg(target_arch = "aarch64")]
fn native_number(name: &str) -> Option<u32> {
    number(syscalls::aarch64::Sysno::from_str(name).ok()?.id())
}

fn number(id: i32) -> Option<u32> {
    u32::try_from(id).ok()
}

/// Those whose programs this processor runs besides its own; no program of the others can be started here.
#[cfg(target_arch = "x86_64")]
fn add_foreign(kind: Arch, rules: &[(&str, Rule)], rest: u32, all: &mut Vec<(u32, BTreeMap<u32, Answer>)>) {
    /// `AUDIT_ARCH_I386` (linux/audit.h).
    const I386: u32 = 0x4000_0003;
    /// Calls of x32 are those of x86-64 with this bit (asm/unistd.h).
    const X32_BIT: u32 = 0x4000_0000;
    match kind {
        Arch::ScmpArchX86 if all.iter().all(|(architecture, _)| *architecture != I386) => {
            let of = |name: &str| number(syscalls::x86::Sysno::from_str(name).ok()?.id());
            all.push((I386, answers(rules, rest, of)));
        }
        Arch::ScmpArchX32 => {
            let x32 = answers(rules, rest, native_number);
            if let Some((_, native)) = all.first_mut() {
                let own = x32.into_iter().filter(|(call, _)| call & X32_BIT == 0);
                native.extend(own.map(|(call, answer)| (call | X32_BIT, answer)));
            }
        }
        _ => {}
    }
}

#[cfg(target_arch = "aarch64")]
fn add_foreign(kind: Arch, rules: &[(&str, Rule)], rest: u32, all: &mut Vec<(u32, BTreeMap<u32, Answer>)>) {
    /// `AUDIT_ARCH_ARM` (linux/audit.h).
    const ARM: u32 = 0x4000_0028;
    if kind == Arch::ScmpArchArm && all.iter().all(|(architecture, _)| *architecture != ARM) {
        let of = |name: &str| number(syscalls::arm::Sysno::from_str(name).ok()?.id());
        all.push((ARM, answers(rules, rest, of)));
    }
}

/// Names that this architecture does not have are no calls of it: lists are written for many kernels and processors.
fn answers(rules: &[(&str, Rule)], rest: u32, number: impl Fn(&str) -> Option<u32>) -> BTreeMap<u32, Answer> {
    /// x32's numbers begin here: they are of no program that was asked for.
    const OTHERS: u32 = 0x4000_0000;
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for (name, rule) in rules {
        if let Some(number) = number(name) {
            by_number.entry(number).or_default().push(rule);
        }
    }
    let usual = || Answer::Code(vec![give(rest)]);
    let mut answers =
        BTreeMap::from([(0, usual()), (OTHERS, Answer::Code(vec![give(libc::SECCOMP_RET_KILL_PROCESS)]))]);
    for (number, rules) in by_number {
        answers.insert(number, Answer::Code(decide(&rules, rest)));
        answers.entry(number + 1).or_insert_with(usual);
    }
    answers
}

fn decide(rules: &[&Rule], rest: u32) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in rules {
        code.extend(one(rule));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(give(rest));
    code
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
/// Stands for the distance to the end of the rule, until that is known.
const ELSEWHERE: u8 = u8::MAX;

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    // Codes are 16 bits wide.
    Instruction { code: code as u16, jt, jf, k }
}

fn give(value: u32) -> Instruction {
    instruction(RETURN, value, 0, 0)
}

fn one(rule: &Rule) -> Vec<Instruction> {
    let mut code: Vec<Instruction> =
        rule.conditions.iter().flat_map(|condition| compare(*condition)).collect();
    code.push(give(rule.value));
    let length = code.len();
    for (place, instruction) in code.iter_mut().enumerate() {
        // At most six conditions of seven instructions.
        let distance = u8::try_from(length - place - 1).unwrap_or(ELSEWHERE);
        for jump in [&mut instruction.jt, &mut instruction.jf] {
            if *jump == ELSEWHERE {
                *jump = distance;
            }
        }
    }
    code
}

/// Of 64 bits, in halves; arguments are little endian on both processors (`struct seccomp_data`, linux/seccomp.h).
fn compare(condition: Condition) -> Vec<Instruction> {
    let Condition { argument, operator, value, second } = condition;
    let low_at = 16 + 8 * argument;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(value);
    let load_high = instruction(LOAD, low_at + 4, 0, 0);
    let load_low = instruction(LOAD, low_at, 0, 0);
    let of = |code, k, jt, jf| instruction(code, k, jt, jf);
    // Decided by the upper half if that differs.
    let greater = |last| {
        vec![
            load_high,
            of(ABOVE, high, 3, 0),
            of(EQUAL, high, 0, ELSEWHERE),
            load_low,
            of(last, low, 0, ELSEWHERE),
        ]
    };
    let less = |last| {
        vec![
            load_high,
            of(ABOVE, high, ELSEWHERE, 0),
            of(EQUAL, high, 0, 2),
            load_low,
            of(last, low, ELSEWHERE, 0),
        ]
    };
    match operator {
        LinuxSeccompOperator::ScmpCmpEq => {
            vec![load_high, of(EQUAL, high, 0, ELSEWHERE), load_low, of(EQUAL, low, 0, ELSEWHERE)]
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            vec![load_high, of(EQUAL, high, 0, 2), load_low, of(EQUAL, low, ELSEWHERE, 0)]
        }
        LinuxSeccompOperator::ScmpCmpGt => greater(ABOVE),
        LinuxSeccompOperator::ScmpCmpGe => greater(AT_LEAST),
        LinuxSeccompOperator::ScmpCmpLt => less(AT_LEAST),
        LinuxSeccompOperator::ScmpCmpLe => less(ABOVE),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (second_high, second_low) = halves(second);
            vec![
                load_high,
                of(AND, high, 0, 0),
                of(EQUAL, second_high, 0, ELSEWHERE),
                load_low,
                of(AND, low, 0, 0),
                of(EQUAL, second_low, 0, ELSEWHERE),
            ]
        }
    }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
