//! The supervisor's side of one incarnation of the service. It never waits for it.
use crate::control::{ControlError, Endpoint, FromSupervisor, ToSupervisor};
use crate::machine::MAX_PROCESSES;
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use wherry_sys::process::Child;

/// A descriptor that the table and queued messages share.
pub(crate) type Held = Rc<OwnedFd>;

/// Most messages waiting for the service to read: a full inventory, and an end for everything in it.
const MAX_QUEUED: usize = MAX_PROCESSES * 2 + 64;

/// One incarnation.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) child: Child,
    endpoint: Endpoint,
    queue: VecDeque<(FromSupervisor, Vec<Held>)>,
    /// It closed its end, or sent something that cannot be read: nothing more comes from there.
    closed: bool,
}

/// The service does not read what it is sent, or cannot be sent to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Deaf;

/// What the service said.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message with descriptors.
    Message(ToSupervisor, Vec<OwnedFd>),
    /// Something that is no message; it is gone.
    Garbage(ControlError),
    /// Nothing (now).
    Nothing,
}

impl Link {
    pub(crate) fn new(child: Child, endpoint: Endpoint) -> Self {
        Self { child, endpoint, queue: VecDeque::new(), closed: false }
    }

    /// For poll: whether to wait for room to send besides; `None` when nothing can come from it.
    pub(crate) fn interest(&self) -> Option<(&Endpoint, bool)> {
        (!self.closed).then_some((&self.endpoint, !self.queue.is_empty()))
    }

    pub(crate) fn send(&mut self, message: FromSupervisor, attached: Vec<Held>) -> Result<(), Deaf> {
        if self.queue.len() >= MAX_QUEUED {
            return Err(Deaf);
        }
        self.queue.push_back((message, attached));
        self.flush()
    }

    /// Sends what there is room for.
    pub(crate) fn flush(&mut self) -> Result<(), Deaf> {
        while let Some((message, attached)) = self.queue.front() {
            let borrowed: Vec<_> = attached.iter().map(|held| held.as_fd()).collect();
            match self.endpoint.send(message, &borrowed) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(ControlError::WouldBlock) => return Ok(()),
                // It is ending; what it said before can still be read.
                Err(ControlError::Closed) => self.queue.clear(),
                Err(
                    ControlError::TooLarge
                    | ControlError::Garbage { .. }
                    | ControlError::NotSupervised
                    | ControlError::Call(_),
                ) => return Err(Deaf),
            }
        }
        Ok(())
    }

    pub(crate) fn hear(&mut self) -> Heard {
        if self.closed {
            return Heard::Nothing;
        }
        match self.endpoint.recv() {
            Ok((message, descriptors)) => Heard::Message(message, descriptors),
            Err(ControlError::WouldBlock) => Heard::Nothing,
            Err(error @ (ControlError::Garbage { .. } | ControlError::TooLarge)) => Heard::Garbage(error),
            Err(ControlError::Closed | ControlError::NotSupervised | ControlError::Call(_)) => {
                self.closed = true;
                Heard::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;

    fn link() -> (Link, Endpoint) {
        let (ours, theirs) = Endpoint::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        (Link::new(Child { pid: Pid::from_raw(1), pidfd: file(), start: file() }, ours), theirs)
    }

    #[test]
    fn messages_wait_for_a_slow_reader_and_a_deaf_one_is_noticed() {
        let (mut link, service) = link();
        let mut sent = 0;
        while link.send(FromSupervisor::InventoryEnd, Vec::new()) == Ok(()) {
            sent += 1;
        }
        assert!(sent > MAX_QUEUED, "the socket's own buffer comes on top: {sent}");
        assert!(link.interest().unwrap().1);
        for _ in 0..sent {
            service.recv::<FromSupervisor>().unwrap();
            link.flush().unwrap();
        }
        assert!(!link.interest().unwrap().1);
    }

    #[test]
    fn a_closed_end_is_polled_no_more() {
        let (mut link, service) = link();
        drop(service);
        assert!(matches!(link.hear(), Heard::Nothing));
        assert!(link.interest().is_none());
        assert_eq!(link.send(FromSupervisor::InventoryEnd, Vec::new()), Ok(()));
    }
}
