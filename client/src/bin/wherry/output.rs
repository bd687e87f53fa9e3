//! What is printed: tables for people, JSON for programs.
use crate::context::CliError;
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};

/// Bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// One line of text.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    raw(format!("{text}\n").as_bytes())
}

/// One JSON document, indented.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::Other(error.to_string()))?;
    line(&text)
}

/// One line of JSON, of a stream of them.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|error| CliError::Other(error.to_string()))?;
    line(&text)
}

/// A table with its heading in bold on a terminal, plain elsewhere.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
    let bold = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    raw(render(heading, rows, bold).as_bytes())
}

/// Columns two spaces apart, each as wide as its widest cell.
fn render(heading: &[&str], rows: &[Vec<String>], bold: bool) -> String {
    let heading: Vec<String> = heading.iter().map(|text| (*text).to_owned()).collect();
    let width = |column: usize| {
        std::iter::once(&heading)
            .chain(rows)
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in std::iter::once(&heading).chain(rows).enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{:<width$}", printable(cell))).collect();
        let line = cells.join("  ");
        match (number, bold) {
            (0, true) => text.push_str(&format!("\x1b[1m{}\x1b[0m\n", line.trim_end())),
            _ => text.push_str(&format!("{}\n", line.trim_end())),
        }
    }
    text
}

/// Without control characters: names and messages come from other machines and must not drive this terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Bytes as people read them: 1.5 MiB.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A time span as people say it, in its largest unit or two: 42 s, 5 min, 3 h 20 min, 2 days.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 if seconds % 3600 < 60 => format!("{} h", seconds / 3600),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        86400..172_800 => "1 day".into(),
        _ => format!("{} days", seconds / 86400),
    }
}

/// Unix seconds now.
pub(crate) fn now_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A moment as RFC 3339 has it, UTC, with milliseconds.
pub(crate) fn timestamp(ms: u64) -> String {
    /// The last moment of the year 9999, which is the last that can be written so.
    const LAST_MS: u64 = 253_402_300_799_999;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms.min(LAST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// How long ago some moment was, by this computer's clock.
pub(crate) fn ago(seconds: u64) -> String {
    format!("{} ago", span(now_seconds().saturating_sub(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["c1".into(), "web".into()], vec!["c12".into(), "x\x1b[31m".into()]];
        assert_eq!(render(&["ID", "NAME"], &rows, false), "ID   NAME\nc1   web\nc12  x?[31m\n");
        assert!(render(&["ID", "NAME"], &rows, true).starts_with("\x1b[1mID   NAME\x1b[0m\n"));
        assert_eq!(render(&["ID"], &[], false), "ID\n");
    }

    #[test]
    fn sizes_and_spans() {
        for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB")] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [
            (5, "5 s"),
            (60, "1 min"),
            (3600, "1 h"),
            (12_000, "3 h 20 min"),
            (90_000, "1 day"),
            (200_000, "2 days"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
