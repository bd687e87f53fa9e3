//! `docs/protocol.md` says what the code does: the tables of messages, error codes and constants come from here.
//!
//! `WHERRY_BLESS=1 cargo test -p wherry-protocol --test document` writes the generated part anew.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use wherry_protocol::{ErrorCode, Limits, handshake};

const BEGIN: &str = "<!-- generated from protocol/src/message: begin -->\n";
const END: &str = "<!-- generated: end -->\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One item of the table: a struct's field or an enum's variant.
struct Item {
    name: String,
    contents: String,
    doc: String,
}

struct Type {
    name: String,
    is_enum: bool,
    doc: String,
    items: Vec<Item>,
}

/// Reads the types of one source file. It knows only how these files are written: rustfmt's shape, a doc comment on
/// everything.
fn types(source: &str) -> Vec<Type> {
    let mut types: Vec<Type> = Vec::new();
    let mut open: Option<Type> = None;
    let mut doc = String::new();
    let mut variant: Option<Item> = None;
    for line in source.lines() {
        let text = line.trim();
        if let Some(words) = text.strip_prefix("///") {
            doc = format!("{doc}{} ", words.trim());
            continue;
        }
        if text.starts_with("#[") || text.is_empty() {
            continue;
        }
        let doc = std::mem::take(&mut doc).trim().to_owned();
        let heading = [("pub enum ", true), ("pub struct ", false)]
            .iter()
            .find_map(|(prefix, is_enum)| Some((text.strip_prefix(prefix)?.strip_suffix(" {")?, *is_enum)));
        if let Some((name, is_enum)) = heading {
            open = Some(Type { name: name.to_owned(), is_enum, doc, items: Vec::new() });
        } else if line == "}" {
            types.extend(open.take());
        } else if let Some(current) = &mut open {
            member(current, &mut variant, line, doc);
        }
    }
    types
}

fn member(current: &mut Type, variant: &mut Option<Item>, line: &str, doc: String) {
    let text = line.trim().trim_end_matches(',');
    if line.starts_with("        ") {
        let item = variant.as_mut().expect("a field belongs to a variant");
        let separator = if item.contents.is_empty() { "" } else { ", " };
        write!(item.contents, "{separator}{}", text.replace(": ", " ")).unwrap();
    } else if text == "}" {
        current.items.extend(variant.take());
    } else if let Some(name) = text.strip_suffix(" {") {
        *variant = Some(Item { name: name.to_owned(), contents: String::new(), doc });
    } else if let Some((name, contents)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        current.items.push(Item { name: name.to_owned(), contents: contents.to_owned(), doc });
    } else {
        let (name, contents) = text.trim_start_matches("pub ").split_once(": ").unwrap_or((text, ""));
        current.items.push(Item { name: name.to_owned(), contents: contents.to_owned(), doc });
    }
}

/// Rust links and paths as plain words.
fn plain(doc: &str) -> String {
    doc.replace("[`", "`").replace("`]", "`").replace("crate::message::", "").replace("super::", "")
}

fn tables() -> String {
    let files =
        ["message/session.rs", "message/user.rs", "message/node.rs", "message/container.rs", "token.rs"];
    let mut out = String::new();
    for file in files {
        for Type { name, is_enum, doc, items } in types(&read(&format!("protocol/src/{file}"))) {
            if file == "token.rs" && name != "Role" {
                continue;
            }
            let head = if is_enum { "| number | variant | contents | |" } else { "| | field | type | |" };
            writeln!(out, "#### {name}\n{}\n\n{head}\n|---|---|---|---|", plain(&doc)).unwrap();
            for (position, Item { name, contents, doc }) in items.iter().enumerate() {
                let number = if is_enum { position.to_string() } else { String::new() };
                let contents = if contents.is_empty() { String::new() } else { format!("`{contents}`") };
                writeln!(out, "| {number} | `{name}` | {contents} | {} |", plain(doc)).unwrap();
            }
            out.push('\n');
        }
    }
    out
}

#[test]
fn the_tables_are_those_of_the_code() {
    let path = root().join("docs/protocol.md");
    let document = read("docs/protocol.md");
    let (before, rest) = document.split_once(BEGIN).expect("the begin mark");
    let (was, after) = rest.split_once(END).expect("the end mark");
    let is = tables();
    assert!(is.lines().count() > 300, "the parser lost the sources");
    if std::env::var_os("WHERRY_BLESS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{is}{END}{after}")).unwrap();
        return;
    }
    for (is, was) in is.lines().zip(was.lines()) {
        assert_eq!(is, was, "run the test with WHERRY_BLESS=1 to bring docs/protocol.md up to date");
    }
    assert_eq!(is, was);
}

#[test]
fn the_golden_transcript_is_shown() {
    let golden = read("protocol/tests/golden/transcript.txt");
    let shown = read("docs/protocol.md").contains(&golden);
    assert!(shown, "paste protocol/tests/golden/transcript.txt into docs/protocol.md");
}

#[test]
fn every_error_code_is_listed() {
    let document = read("docs/protocol.md");
    let known = (1..=u16::MAX).map(ErrorCode::from).take_while(|code| !matches!(code, ErrorCode::Unknown(_)));
    let mut count = 0;
    for code in known {
        let row = format!("| {} | `{code:?}` |", u16::from(code));
        assert!(document.contains(&row), "docs/protocol.md lacks '{row}'");
        count += 1;
    }
    assert!(count >= 20);
}

#[test]
fn numbers_in_the_text_are_those_of_the_code() {
    let document = read("docs/protocol.md");
    let limits = Limits::DEFAULT;
    let facts = [
        format!("HELLO is {} bytes", handshake::HELLO_BYTES),
        format!("WELCOME is {} bytes", handshake::WELCOME_BYTES),
        format!("INITIATE is {} bytes", handshake::INITIATE_BYTES),
        format!("generation {}", handshake::GENERATION),
        format!("{} seconds after it was made", handshake::COOKIE_LIFETIME_MILLISECONDS / 1000),
        format!("every {} seconds", handshake::COOKIE_KEY_MILLISECONDS / 1000),
        format!("at most {} bytes of contents", limits.record_bytes),
        format!("{} streams", limits.streams),
        format!("every {} seconds", limits.rekey_seconds),
        format!("message of at most {} bytes", limits.message_bytes),
    ];
    for fact in facts {
        assert!(document.contains(&fact), "docs/protocol.md lacks '{fact}'");
    }
    assert_eq!(limits.rekey_records, 1 << 32);
    assert!(document.contains("2^32 records"));
}
