//! Device nodes, and the program that decides which devices a cgroup may use.
use super::super::error::OciError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// A node, made or bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Node {
    pub(in super::super) path: String,
    pub(in super::super) kind: NodeKind,
    pub(in super::super) mode: u32,
    pub(in super::super) uid: u32,
    pub(in super::super) gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum NodeKind {
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// config-linux.md, "Default Devices".
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
const EVERYBODY: u32 = 0o666;

pub(super) fn usual() -> Vec<Node> {
    let node = |(path, major, minor): (&str, u32, u32)| Node {
        path: path.into(),
        kind: NodeKind::Character(major, minor),
        mode: EVERYBODY,
        uid: 0,
        gid: 0,
    };
    USUAL.map(node).into()
}

/// # Errors
/// [`OciError::Config`].
pub(super) fn configured(devices: &[LinuxDevice]) -> Result<Vec<Node>, OciError> {
    devices.iter().map(configured_one).collect()
}

fn configured_one(device: &LinuxDevice) -> Result<Node, OciError> {
    let shown = device.path().display();
    let path = device.path().to_str().map(str::to_owned);
    let path = path.ok_or_else(|| OciError::Config(format!("the path of device {shown} is not UTF-8")))?;
    let number = |what: &str, number: i64| {
        u32::try_from(number)
            .map_err(|_| OciError::Config(format!("{what} {number} of {shown} is no device number")))
    };
    let numbers = || Ok::<_, OciError>((number("major", device.major())?, number("minor", device.minor())?));
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => numbers().map(|(a, b)| NodeKind::Character(a, b))?,
        LinuxDeviceType::B => numbers().map(|(a, b)| NodeKind::Block(a, b))?,
        LinuxDeviceType::P => NodeKind::Fifo,
        LinuxDeviceType::A => {
            return Err(OciError::Config(format!(
                "device {shown} has type 'a', which is none of c, b, u and p"
            )));
        }
    };
    const PERMISSIONS: u32 = 0o7777;
    let mode = device.file_mode().unwrap_or(EVERYBODY) & PERMISSIONS;
    Ok(Node { path, kind, mode, uid: device.uid().unwrap_or(0), gid: device.gid().unwrap_or(0) })
}

/// linux/bpf.h: `BPF_DEVCG_ACC_*` and `BPF_DEVCG_DEV_*`.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

#[derive(Debug, Clone, Copy)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// The instructions of an eBPF program (Documentation/bpf/standardization/instruction-set.rst), each in its 64 bits; none
/// if there are no rules. The usual devices may be used whatever the rules say, because every container has them.
pub(super) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, OciError> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = rules.iter().map(rule).collect::<Result<Vec<Rule>, OciError>>()?;
    let always = |major, minor| Rule {
        allow: true,
        kind: Some(CHARACTER),
        major: Some(major),
        minor,
        access: MAKE | READ | WRITE,
    };
    list.extend(USUAL.iter().map(|&(_, major, minor)| always(major, Some(minor))));
    // /dev/console, /dev/ptmx and the terminals of devpts.
    list.extend([always(5, Some(1)), always(5, Some(2)), always(136, None)]);
    Ok(compile(&list))
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule, OciError> {
    let letters = rule.access().as_deref().unwrap_or_default();
    let bits = [('m', MAKE), ('r', READ), ('w', WRITE)];
    let access =
        bits.iter().filter(|(letter, _)| letters.contains(*letter)).fold(0, |sum, (_, bit)| sum | bit);
    // A number below zero is "all of them", as in the first version of cgroups.
    let number = |number: Option<i64>| {
        let number = number.filter(|&number| number >= 0);
        let narrow = |number| {
            u32::try_from(number)
                .map_err(|_| OciError::Config("linux.resources.devices has a number above 4294967295".into()))
        };
        number.map(narrow).transpose()
    };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::P) => {
            return Err(OciError::Config(
                "linux.resources.devices has type 'p', and pipes are no devices".into(),
            ));
        }
    };
    // Without letters a rule is about every access, as in crun.
    let access = if access == 0 { MAKE | READ | WRITE } else { access };
    Ok(Rule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
}

/// Registers and opcodes.
const R0: u64 = 0;
const R1: u64 = 1;
const KIND: u64 = 2;
const ACCESS: u64 = 3;
const MAJOR: u64 = 4;
const MINOR: u64 = 5;
const SCRATCH: u64 = 6;
const LOAD_WORD: u64 = 0x61;
const MOVE: u64 = 0xb7;
const MOVE_REGISTER: u64 = 0xbf;
const AND32: u64 = 0x54;
const SHIFT_RIGHT32: u64 = 0x74;
const JUMP_IF_NOT: u64 = 0x56;
const JUMP_IF: u64 = 0x16;
const EXIT: u64 = 0x95;

const fn instruction(code: u64, to: u64, from: u64, offset: u64, constant: u32) -> u64 {
    code | to << 8 | from << 12 | offset << 16 | (constant as u64) << 32
}

/// The last rule that speaks about an access decides, so they are asked from the end. One that refuses speaks if it is
/// about any part of the access, one that allows only if it is about all of it. What no rule speaks about is allowed, as
/// in a cgroup without rules.
fn compile(rules: &[Rule]) -> Vec<u64> {
    // struct bpf_cgroup_dev_ctx: access in the upper and kind in the lower half of the first word, then the numbers.
    let mut code = vec![
        instruction(LOAD_WORD, KIND, R1, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT32, ACCESS, 0, 0, 16),
        instruction(AND32, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, R1, 4, 0),
        instruction(LOAD_WORD, MINOR, R1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let asked = ask(rule);
        let always = asked.len() == answer(rule.allow).len();
        code.extend(asked);
        if always {
            // The kernel refuses programs with instructions that are never reached.
            return code;
        }
    }
    code.extend(answer(true));
    code
}

fn answer(allow: bool) -> [u64; 2] {
    [instruction(MOVE, R0, 0, 0, u32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn ask(rule: &Rule) -> Vec<u64> {
    let equal = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let mut conditions: Vec<u64> = equal
        .iter()
        .filter_map(|(register, value)| value.map(|value| instruction(JUMP_IF_NOT, *register, 0, 0, value)))
        .collect();
    if rule.access != MAKE | READ | WRITE {
        let all = MAKE | READ | WRITE;
        let (bits, jump) =
            if rule.allow { (all & !rule.access, JUMP_IF_NOT) } else { (rule.access, JUMP_IF) };
        conditions.extend([
            instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
            instruction(AND32, SCRATCH, 0, 0, bits),
            instruction(jump, SCRATCH, 0, 0, 0),
        ]);
    }
    // Each condition that does not hold jumps over the rest of this rule, its answer included.
    let length = conditions.len() as u64 + 2;
    let jumps = |code: u64| matches!(code & 0xff, JUMP_IF | JUMP_IF_NOT);
    let placed = conditions
        .iter()
        .zip(1..)
        .map(|(&code, place)| if jumps(code) { code | (length - place) << 16 } else { code });
    placed.chain(answer(rule.allow)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, with those instructions that occur.
    fn run(code: &[u64], access: u32, kind: u32, major: u32, minor: u32) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let word = code[at];
            let (to, from) = ((word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
            let (offset, constant) = ((word >> 16 & 0xffff) as usize, word >> 32);
            at += 1;
            match word & 0xff {
                LOAD_WORD => registers[to] = u64::from(context[offset / 4]),
                MOVE => registers[to] = constant,
                MOVE_REGISTER => registers[to] = registers[from],
                AND32 => registers[to] &= constant,
                SHIFT_RIGHT32 => registers[to] >>= constant,
                JUMP_IF if registers[to] == constant => at += offset,
                JUMP_IF_NOT if registers[to] != constant => at += offset,
                JUMP_IF | JUMP_IF_NOT => {}
                EXIT => return registers[R0 as usize],
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn rules(json: &str) -> Vec<u64> {
        program(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    #[test]
    fn the_last_rule_that_speaks_decides() {
        let code = rules(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"},
                {"allow":true,"type":"b","major":8,"access":"r"},{"allow":false,"type":"c","major":10,"minor":229,"access":"w"}]"#,
        );
        for (access, kind, major, minor, allowed) in [
            (READ, CHARACTER, 10, 229, 1),
            (WRITE, CHARACTER, 10, 229, 0),
            (READ | WRITE, CHARACTER, 10, 229, 0),
            (MAKE, CHARACTER, 10, 229, 0),
            (READ, BLOCK, 10, 229, 0),
            (READ, BLOCK, 8, 17, 1),
            (READ | WRITE, BLOCK, 8, 17, 0),
            (READ, CHARACTER, 1, 1, 0),
            (READ | WRITE, CHARACTER, 1, 3, 1),
            (READ | WRITE, CHARACTER, 136, 77, 1),
        ] {
            assert_eq!(run(&code, access, kind, major, minor), allowed, "{access} {kind} {major}:{minor}");
        }
    }

    #[test]
    fn no_rules_are_no_program_and_nonsense_is_refused() {
        assert!(program(&[]).unwrap().is_empty());
        let code = rules(r#"[{"allow":false,"type":"b","major":8,"minor":-1}]"#);
        assert_eq!((run(&code, READ, BLOCK, 8, 3), run(&code, READ, BLOCK, 9, 3)), (0, 1));
        for bad in [r#"[{"allow":true,"type":"p"}]"#, r#"[{"allow":true,"major":4294967296}]"#] {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(bad).unwrap();
            assert!(matches!(program(&rules), Err(OciError::Config(_))), "{bad}");
        }
    }
}
