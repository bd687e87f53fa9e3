//! The order of a launch's descriptors, in one place for both sides.
use super::{Launch, MAX_ARGUMENT, MAX_EXTRA, MAX_KEPT, MAX_LABEL};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The descriptors of a launch: owned where they arrive, borrowed where they are sent.
#[derive(Debug)]
pub struct Descriptors<F = OwnedFd> {
    /// Sealed memory file; the child's descriptor 3.
    pub plan: F,
    /// Read end of the go pipe; 4.
    pub go: F,
    /// Write end of the report pipe; 5.
    pub report: F,
    /// 0, 1 and 2.
    pub stdio: [F; 3],
    /// Directory of the cgroup.
    pub cgroup: Option<F>,
    /// 6 and up.
    pub extra: Vec<F>,
    /// For the supervisor to keep, with their labels.
    pub kept: Vec<(String, F)>,
}

/// Why a launch and its descriptors do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorsError {
    /// Too few or too many descriptors came with it.
    #[error("a launch needs {needed} descriptors and came with {attached}")]
    Count {
        /// By its fields.
        needed: usize,
        /// In the datagram.
        attached: usize,
    },
    /// More than [`MAX_KEPT`] labels or [`MAX_EXTRA`] extra descriptors.
    #[error(
        "a launch asks to keep {kept} and to pass {extra} descriptors; the most are {MAX_KEPT} and {MAX_EXTRA}"
    )]
    TooMany {
        /// Labels.
        kept: usize,
        /// Extra descriptors.
        extra: u8,
    },
    /// A label is empty, too long, repeated, or has other than lower-case letters, digits and dashes.
    #[error("bad label of a kept descriptor")]
    Label,
    /// The argument is empty, too long, or has other than lower-case letters, digits and dashes.
    #[error("bad argument of a launch")]
    Argument,
}

impl<F: AsFd> Descriptors<F> {
    /// In the order of the datagram.
    #[must_use]
    pub fn in_order(&self) -> Vec<BorrowedFd<'_>> {
        let fixed = [&self.plan, &self.go, &self.report].into_iter().chain(&self.stdio);
        let more = self.cgroup.iter().chain(&self.extra).chain(self.kept.iter().map(|(_, fd)| fd));
        fixed.chain(more).map(AsFd::as_fd).collect()
    }

    /// Labels of the kept ones, for [`Launch::kept`].
    #[must_use]
    pub fn labels(&self) -> Vec<String> {
        self.kept.iter().map(|(label, _)| label.clone()).collect()
    }
}

impl<F> Descriptors<F> {
    /// The same with every descriptor converted.
    pub fn map<G>(self, convert: impl Fn(F) -> G) -> Descriptors<G> {
        Descriptors {
            plan: convert(self.plan),
            go: convert(self.go),
            report: convert(self.report),
            stdio: self.stdio.map(&convert),
            cgroup: self.cgroup.map(&convert),
            extra: self.extra.into_iter().map(&convert).collect(),
            kept: self.kept.into_iter().map(|(label, fd)| (label, convert(fd))).collect(),
        }
    }
}

impl Descriptors {
    /// Takes a datagram's descriptors apart, checking the whole request.
    ///
    /// # Errors
    /// [`DescriptorsError`]; all descriptors are closed then.
    pub fn split(launch: &Launch, attached: Vec<OwnedFd>) -> Result<Self, DescriptorsError> {
        check_texts(launch)?;
        let count = attached.len();
        let needed = needed(launch);
        let wrong = DescriptorsError::Count { needed, attached: count };
        if count != needed {
            return Err(wrong);
        }
        let mut rest = attached.into_iter();
        let mut next = || rest.next().ok_or_else(|| wrong.clone());
        let (plan, go, report) = (next()?, next()?, next()?);
        let stdio = [next()?, next()?, next()?];
        let cgroup = if launch.cgroup { Some(next()?) } else { None };
        let extra = (0..launch.extra).map(|_| next()).collect::<Result<_, _>>()?;
        let kept = launch.kept.iter().cloned().zip(rest).collect();
        Ok(Self { plan, go, report, stdio, cgroup, extra, kept })
    }
}

fn needed(launch: &Launch) -> usize {
    const FIXED: usize = 6;
    FIXED
        .saturating_add(usize::from(launch.cgroup))
        .saturating_add(usize::from(launch.extra))
        .saturating_add(launch.kept.len())
}

fn check_texts(launch: &Launch) -> Result<(), DescriptorsError> {
    if launch.kept.len() > MAX_KEPT || launch.extra > MAX_EXTRA {
        return Err(DescriptorsError::TooMany { kept: launch.kept.len(), extra: launch.extra });
    }
    if !is_word(&launch.argument, MAX_ARGUMENT) {
        return Err(DescriptorsError::Argument);
    }
    let distinct: BTreeSet<_> = launch.kept.iter().collect();
    if distinct.len() != launch.kept.len() || !launch.kept.iter().all(|label| is_word(label, MAX_LABEL)) {
        return Err(DescriptorsError::Label);
    }
    Ok(())
}

fn is_word(text: &str, max_bytes: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= max_bytes && text.bytes().all(plain)
}
