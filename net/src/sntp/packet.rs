//! A question and what its answer says (RFC 4330 §4 and §5).
use super::EARLIEST_SECONDS;

/// Nanoseconds since 1970, or between two moments.
pub type Nanos = i64;

/// Length without authentication.
pub(super) const BYTES: usize = 48;
/// From 1900, where NTP begins to count, to 1970.
const UNIX_SECONDS: i64 = 2_208_988_800;
/// Seconds count from 1900 again after so many (RFC 5905 §6): in 2036.
const ERA_SECONDS: i64 = 1 << 32;
const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// Version 4, mode 3 (client).
const CLIENT: u8 = 4 << 3 | 3;
/// Strata of servers that know the time (RFC 5905 §7.3).
const STRATA: std::ops::RangeInclusive<u8> = 1..=15;
/// A server that may be wrong by more is of no use here (RFC 5905 §A.1.1, MAXDIST is 1.5 s).
const MAX_ROOT_DISTANCE: Nanos = 1_500_000_000;

/// What a server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When it got the question.
    pub received: Nanos,
    /// When it sent the answer.
    pub sent: Nanos,
    /// By how much it may itself be wrong.
    pub root_distance: Nanos,
}

/// Why something that came is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a server's answer.
    #[error("what came is no NTP answer")]
    NotAnAnswer,
    /// An answer to something else: late, or forged by somebody who did not see the question.
    #[error("it answers another question")]
    WrongQuestion,
    /// The server does not know the time itself.
    #[error("the server is not synchronised")]
    Unsynchronised,
    /// Kiss-o'-death (RFC 5905 §7.4): `RATE`, `DENY`, `RSTR`.
    #[error("the server asks to be left alone")]
    LeaveAlone,
}

/// A question. `cookie` stands where the time of sending would: servers give it back, and nobody else knows it
/// (draft-ietf-ntp-data-minimization).
pub(super) fn question(cookie: [u8; 8]) -> [u8; BYTES] {
    let mut packet = [0; BYTES];
    packet[0] = CLIENT;
    packet[40..].copy_from_slice(&cookie);
    packet
}

/// Reads what came after a question with this cookie.
pub(super) fn answer(packet: &[u8], cookie: [u8; 8]) -> Result<Answer, Refusal> {
    let head: &[u8; BYTES] = packet.first_chunk().ok_or(Refusal::NotAnAnswer)?;
    let [first, stratum, ..] = *head;
    let (leap, version, mode) = (first >> 6, first >> 3 & 7, first & 7);
    if mode != 4 || !(3..=4).contains(&version) {
        return Err(Refusal::NotAnAnswer);
    }
    if field(head, 24) != cookie {
        return Err(Refusal::WrongQuestion);
    }
    if stratum == 0 {
        return Err(Refusal::LeaveAlone);
    }
    let root_distance = short(head, 4) / 2 + short(head, 8);
    let (received, sent) = (field(head, 32), field(head, 40));
    if leap == 3 || !STRATA.contains(&stratum) || sent == [0; 8] || root_distance > MAX_ROOT_DISTANCE {
        return Err(Refusal::Unsynchronised);
    }
    Ok(Answer { received: time(received), sent: time(sent), root_distance })
}

/// Eight bytes at `at`.
fn field(packet: &[u8; BYTES], at: usize) -> [u8; 8] {
    packet.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

/// NTP's short format: 16 bits of seconds, 16 of fraction (RFC 5905 §6).
fn short(packet: &[u8; BYTES], at: usize) -> Nanos {
    let bytes = packet.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
    (i64::from(u32::from_be_bytes(bytes)) * NANOS_PER_SECOND) >> 16
}

/// A timestamp: 32 bits of seconds, 32 of fraction. Of all eras that it may be in, the first after this program was made.
fn time(bytes: [u8; 8]) -> Nanos {
    let whole = u64::from_be_bytes(bytes);
    let (seconds, fraction) = ((whole >> 32) as i64, (whole & 0xffff_ffff) as i64);
    let mut unix = seconds - UNIX_SECONDS;
    let earliest = i64::try_from(EARLIEST_SECONDS).unwrap_or(i64::MAX);
    while unix < earliest {
        unix += ERA_SECONDS;
    }
    unix.saturating_mul(NANOS_PER_SECOND).saturating_add((fraction * NANOS_PER_SECOND) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COOKIE: [u8; 8] = *b"cookie!!";

    fn sample() -> [u8; BYTES] {
        let mut packet = [0; BYTES];
        packet[0] = 4 << 3 | 4;
        packet[1] = 2;
        packet[4..8].copy_from_slice(&[0, 0, 0x80, 0]);
        packet[24..32].copy_from_slice(&COOKIE);
        for at in [32, 40] {
            let seconds = (1_800_000_000 + UNIX_SECONDS) as u32;
            packet[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
            packet[at + 4] = 0x80;
        }
        packet
    }

    fn with(change: impl FnOnce(&mut [u8; BYTES])) -> Result<Answer, Refusal> {
        let mut packet = sample();
        change(&mut packet);
        answer(&packet, COOKIE)
    }

    #[test]
    fn an_answer_is_read() {
        let time = 1_800_000_000_500_000_000;
        let expected = Answer { received: time, sent: time, root_distance: 250_000_000 };
        assert_eq!(with(|_| {}), Ok(expected));
        assert_eq!(question(COOKIE)[..1], [0x23]);
        assert_eq!(question(COOKIE)[40..], COOKIE);
    }

    #[test]
    fn what_is_none_is_refused() {
        use Refusal::*;
        assert_eq!(answer(&sample()[..47], COOKIE), Err(NotAnAnswer));
        assert_eq!(answer(&[], COOKIE), Err(NotAnAnswer));
        assert_eq!(answer(&question(COOKIE), COOKIE), Err(NotAnAnswer), "a question");
        assert_eq!(with(|p| p[0] = 2 << 3 | 4), Err(NotAnAnswer), "version 2");
        assert_eq!(with(|p| p[31] ^= 1), Err(WrongQuestion));
        assert_eq!(with(|p| p[1] = 0), Err(LeaveAlone));
        assert_eq!(with(|p| p[1] = 16), Err(Unsynchronised));
        assert_eq!(with(|p| p[0] |= 3 << 6), Err(Unsynchronised));
        assert_eq!(with(|p| p[40..].fill(0)), Err(Unsynchronised));
        assert_eq!(with(|p| p[8] = 1), Err(Unsynchronised), "wrong by minutes");
    }

    #[test]
    fn the_count_of_seconds_goes_on_after_2036() {
        let rolled = with(|p| p[32..36].copy_from_slice(&[0, 0, 0, 1])).unwrap();
        assert_eq!(rolled.received / NANOS_PER_SECOND, ERA_SECONDS - UNIX_SECONDS + 1);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(packet in prop::collection::vec(any::<u8>(), 0..100), cookie in any::<[u8; 8]>()) {
            prop_assert!(answer(&packet, cookie).is_err() || packet.len() >= BYTES);
        }

        #[test]
        fn any_answer_has_a_usable_time(tail in any::<[u8; 24]>()) {
            let mut packet = sample();
            packet[24..].copy_from_slice(&tail);
            packet[24..32].copy_from_slice(&COOKIE);
            if let Ok(answer) = answer(&packet, COOKIE) {
                prop_assert!(answer.received >= EARLIEST_SECONDS as i64 * NANOS_PER_SECOND && answer.root_distance >= 0);
            }
        }
    }
}
