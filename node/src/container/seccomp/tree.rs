//! From answers by call number to a filter: a balanced tree of comparisons over runs of equal answers, instead of one
//! comparison after the other. The kernel runs a new filter once for every call there is
//! (`seccomp_cache_prepare` in kernel/seccomp.c), and after that for every call that depends on arguments.
use super::Instruction;
use nix::libc;
use std::collections::BTreeMap;

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Allow,
    /// `EPERM`.
    Refuse,
    /// `ENOSYS`, as if this kernel did not have it.
    Unknown,
    /// Allowed if its arguments are right, otherwise `EPERM`.
    If(Check),
    /// Decided by instructions that end in a return.
    #[cfg(feature = "oci")]
    Code(Vec<Instruction>),
}

/// What an argument must be. Only its lower 32 bits count, which is all that these calls look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    OneOf { argument: u32, values: Vec<u32> },
    NoneOf { argument: u32, bits: u32 },
    Not { argument: u32, value: u32 },
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;

/// Offsets in `struct seccomp_data` (linux/seccomp.h); arguments are little endian on both processors.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

/// A jump over so many instructions if the comparison holds, or over so many if it does not.
fn branch(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    // Codes are 16 bits wide.
    Instruction { code: code as u16, jt, jf, k }
}

fn plain(code: u32, k: u32) -> Instruction {
    branch(code, k, 0, 0)
}

/// The filter. Each entry of `answers` holds from its number up to the next entry's; there must be one for 0.
pub(super) fn compile(architecture: u32, answers: &BTreeMap<u32, Answer>) -> Vec<Instruction> {
    let mut filter = vec![
        plain(LOAD, ARCHITECTURE),
        branch(IF_EQUAL, architecture, 1, 0),
        plain(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    filter.extend(by_number(answers));
    filter
}

/// The same for programs of several architectures, each with its answers.
#[cfg(feature = "oci")]
pub(crate) fn compile_all(architectures: &[(u32, BTreeMap<u32, Answer>)]) -> Vec<Instruction> {
    let mut filter = vec![plain(LOAD, ARCHITECTURE)];
    for (architecture, answers) in architectures {
        let code = by_number(answers);
        let distance = u32::try_from(code.len()).unwrap_or(u32::MAX);
        filter.extend([branch(IF_EQUAL, *architecture, 1, 0), plain(JUMP, distance)]);
        filter.extend(code);
    }
    filter.push(plain(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    filter
}

fn by_number(answers: &BTreeMap<u32, Answer>) -> Vec<Instruction> {
    let mut runs: Vec<(u32, &Answer)> = Vec::new();
    for (number, answer) in answers {
        if runs.last().is_none_or(|(_, last)| *last != answer) {
            runs.push((*number, answer));
        }
    }
    let mut code = vec![plain(LOAD, NUMBER)];
    code.extend(search(&runs));
    code
}

fn search(runs: &[(u32, &Answer)]) -> Vec<Instruction> {
    let (low, high) = runs.split_at(runs.len() / 2);
    let (Some((_, answer)), Some((middle, _))) = (runs.first(), high.first()) else {
        return vec![plain(RETURN, REFUSE)];
    };
    if low.is_empty() {
        return finish(answer);
    }
    let (low, high) = (search(low), search(high));
    let mut code = match u8::try_from(low.len()) {
        Ok(distance) => vec![branch(IF_AT_LEAST, *middle, distance, 0)],
        // Farther than a comparison can jump.
        Err(_) => {
            let distance = u32::try_from(low.len()).unwrap_or(u32::MAX);
            vec![branch(IF_AT_LEAST, *middle, 0, 1), plain(JUMP, distance)]
        }
    };
    code.extend(low);
    code.extend(high);
    code
}

fn finish(answer: &Answer) -> Vec<Instruction> {
    match answer {
        Answer::Allow => vec![plain(RETURN, ALLOW)],
        Answer::Refuse => vec![plain(RETURN, REFUSE)],
        Answer::Unknown => vec![plain(RETURN, UNKNOWN)],
        #[cfg(feature = "oci")]
        Answer::Code(code) => code.clone(),
        Answer::If(Check::OneOf { argument, values }) => {
            let mut code = vec![load(*argument)];
            // The last comparison is followed by the refusal, over which the others jump as well.
            code.extend(values.iter().zip((1..=values.len()).rev()).map(|(value, distance)| {
                branch(IF_EQUAL, *value, u8::try_from(distance).unwrap_or(u8::MAX), 0)
            }));
            code.extend([plain(RETURN, REFUSE), plain(RETURN, ALLOW)]);
            code
        }
        Answer::If(Check::NoneOf { argument, bits }) => vec![
            load(*argument),
            plain(AND, *bits),
            branch(IF_EQUAL, 0, 1, 0),
            plain(RETURN, REFUSE),
            plain(RETURN, ALLOW),
        ],
        Answer::If(Check::Not { argument, value }) => {
            vec![load(*argument), branch(IF_EQUAL, *value, 0, 1), plain(RETURN, REFUSE), plain(RETURN, ALLOW)]
        }
    }
}

fn load(argument: u32) -> Instruction {
    plain(LOAD, FIRST_ARGUMENT + ARGUMENT_BYTES * argument)
}
