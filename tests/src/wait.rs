//! Waiting with a deadline.
use crate::failure::Failure;
use std::time::{Duration, Instant};
use wherry_qemu::patience;

const POLL: Duration = Duration::from_millis(100);

/// Tries `attempt` until it gives a value. Its error is what was seen instead; the last one is told when `timeout`
/// (stretched by [`patience`]) is over.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> Result<T, Failure> {
    let started = Instant::now();
    let deadline = patience(timeout);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(last) if started.elapsed() >= deadline => {
                return Err(Failure::Timeout {
                    what: what.to_owned(),
                    seconds: started.elapsed().as_secs_f64(),
                    last,
                });
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sight_is_told() {
        let mut count = 0;
        let seen = until("a third look", Duration::from_secs(5), || {
            count += 1;
            if count == 3 { Ok(count) } else { Err("too early".to_owned()) }
        });
        assert_eq!(seen.unwrap(), 3);
        let error = until("rain", Duration::ZERO, || Err::<(), _>("sun".into())).unwrap_err().to_string();
        assert!(error.starts_with("rain did not happen") && error.ends_with("last seen: sun"), "{error}");
    }
}
