//! Texts of others in sentences of ours.

/// The beginning of a text, at most `most` characters, fit for a terminal and a log: without control characters.
#[must_use]
pub fn shown(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// The directories and the name that a path is made of: `/a//b/./c` → a, b, c.
pub fn path_parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_short_and_harmless() {
        assert_eq!(shown("a\u{1b}[31m\nbé", 6), "a[31mb");
        assert_eq!(shown("", 6), "");
    }

    #[test]
    fn paths_come_apart() {
        for (path, parts) in [("/a//b/./c/", vec!["a", "b", "c"]), ("/", vec![]), ("a/..", vec!["a", ".."])] {
            assert_eq!(path_parts(path).collect::<Vec<_>>(), parts, "{path}");
        }
    }
}
