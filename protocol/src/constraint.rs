//! On which boards a container may be placed: `node.labels.shelf==top`, as Docker's swarm mode writes it.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name of a label and longest value, in bytes.
const MAX_WORD_BYTES: usize = 128;

/// One condition that a board must meet; of several, all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// What of the board is compared.
    pub subject: Subject,
    /// Whether it must be so, or must not.
    pub equal: bool,
    /// What it is compared with; upper and lower case are the same.
    pub value: String,
}

/// A property of a board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// `node.id`: n2.
    Id,
    /// `node.hostname`: its name.
    Hostname,
    /// `node.platform.arch`: amd64 or arm64; x86_64 and aarch64 mean the same.
    Architecture,
    /// `node.labels.NAME`: what an admin has said about it.
    Label(String),
}

/// A text that is no constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a constraint: expected node.hostname, node.id, node.platform.arch or node.labels.NAME, then == or != and \
     a value, as in node.labels.shelf==top"
)]
pub struct ConstraintError(String);

/// A label of a board that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a label: use NAME=VALUE, the name of letters, digits, '.', '-' and '_', both at most 128 bytes"
)]
pub struct LabelError(String);

/// A board, as constraints see it.
#[derive(Debug, Clone, Copy)]
pub struct Board<'a> {
    /// `n2`.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// `amd64` or `arm64`.
    pub architecture: &'a str,
}

fn shown(text: &str) -> String {
    crate::text::shown(text, 80)
}

fn word_ok(word: &str) -> bool {
    (1..=MAX_WORD_BYTES).contains(&word.len()) && !word.contains(char::is_control)
}

fn label_name_ok(name: &str) -> bool {
    word_ok(name) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Splits and checks `NAME=VALUE`.
///
/// # Errors
/// [`LabelError`].
pub fn label(text: &str) -> Result<(String, String), LabelError> {
    let refuse = || LabelError(shown(text));
    let (name, value) = text.split_once('=').ok_or_else(refuse)?;
    check_label(name, value)?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Checks a label of a board.
///
/// # Errors
/// [`LabelError`].
pub fn check_label(name: &str, value: &str) -> Result<(), LabelError> {
    let fine = label_name_ok(name) && word_ok(value);
    if fine { Ok(()) } else { Err(LabelError(shown(&format!("{name}={value}")))) }
}

impl Constraint {
    /// Whether its words can be said of a board at all.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let subject = match &self.subject {
            Subject::Id | Subject::Hostname | Subject::Architecture => true,
            Subject::Label(name) => label_name_ok(name),
        };
        subject && word_ok(&self.value)
    }

    /// Whether a board meets it; `label` gives its label of a name. A label that a board does not have differs from every
    /// value.
    pub fn is_met<'a>(&self, board: Board<'a>, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let wanted = match &self.subject {
            Subject::Architecture => architecture(&self.value),
            Subject::Id | Subject::Hostname | Subject::Label(_) => &self.value,
        };
        let found = match &self.subject {
            Subject::Id => Some(board.id),
            Subject::Hostname => Some(board.name),
            Subject::Architecture => Some(board.architecture),
            Subject::Label(name) => label(name),
        };
        found.is_some_and(|found| found.eq_ignore_ascii_case(wanted)) == self.equal
    }
}

/// The kernel's names for what OCI calls amd64 and arm64.
fn architecture(name: &str) -> &str {
    match name.to_ascii_lowercase().as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        _ => name,
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;
    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let refuse = || ConstraintError(shown(text));
        let (subject, equal, value) = match (text.split_once("=="), text.split_once("!=")) {
            (Some((subject, value)), _) => (subject, true, value),
            (None, Some((subject, value))) => (subject, false, value),
            (None, None) => return Err(refuse()),
        };
        let subject = match subject.trim() {
            "node.id" => Subject::Id,
            "node.hostname" => Subject::Hostname,
            "node.platform.arch" => Subject::Architecture,
            other => Subject::Label(other.strip_prefix("node.labels.").ok_or_else(refuse)?.to_owned()),
        };
        let constraint = Self { subject, equal, value: value.trim().to_owned() };
        if constraint.is_usable() { Ok(constraint) } else { Err(refuse()) }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Id => f.write_str("node.id")?,
            Subject::Hostname => f.write_str("node.hostname")?,
            Subject::Architecture => f.write_str("node.platform.arch")?,
            Subject::Label(name) => write!(f, "node.labels.{name}")?,
        }
        write!(f, "{}{}", if self.equal { "==" } else { "!=" }, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOARD: Board<'_> = Board { id: "n2", name: "kitchen", architecture: "arm64" };

    fn met(text: &str) -> bool {
        let label = |name: &str| (name == "shelf").then_some("Top");
        text.parse::<Constraint>().unwrap().is_met(BOARD, label)
    }

    #[test]
    fn boards_are_told_apart() {
        for text in [
            "node.id==n2",
            "node.id!=n1",
            "node.hostname == Kitchen",
            "node.platform.arch==aarch64",
            "node.platform.arch!=x86_64",
            "node.labels.shelf==top",
            "node.labels.disk!=ssd",
        ] {
            assert!(met(text), "{text}");
        }
        for text in
            ["node.id==n1", "node.hostname!=kitchen", "node.labels.disk==ssd", "node.labels.shelf!=TOP"]
        {
            assert!(!met(text), "{text}");
        }
    }

    #[test]
    fn texts_are_read_as_they_are_written() {
        for text in ["node.id==n2", "node.hostname!=a", "node.platform.arch==arm64", "node.labels.a.b-c==d=e"]
        {
            assert_eq!(text.parse::<Constraint>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "node.id",
            "node.id=n2",
            "node.ip==1",
            "==x",
            "node.id==",
            "node.labels.==x",
            "node.labels.a b==x",
            "node.id==a\nb",
        ] {
            assert!(bad.parse::<Constraint>().is_err(), "{bad:?}");
        }
        let long = format!("node.labels.a=={}", "x".repeat(MAX_WORD_BYTES + 1));
        assert!(long.parse::<Constraint>().is_err());
    }

    #[test]
    fn labels_are_checked() {
        assert_eq!(label("shelf=top left").unwrap(), ("shelf".to_owned(), "top left".to_owned()));
        for bad in ["shelf", "=top", "shelf=", "a b=c", "a=b\nc"] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
    }
}
