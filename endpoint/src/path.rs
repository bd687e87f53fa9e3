//! Paths as access rules see them: RFC 3986 §6.2.2 normalisation, and what servers are known to read differently.

/// A path and what is suspicious about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Unreserved characters decoded, percent codes in upper case, no dot segments, no empty segments in the middle.
    pub(crate) normal: String,
    /// Some server could read this as another path: an encoded slash, backslash, NUL or control, a parameter (`;`), or a percent sign
    /// that is no code or encodes another.
    pub(crate) ambiguous: bool,
}

impl Path {
    /// `None` for what does not begin with a slash.
    pub(crate) fn new(raw: &str) -> Option<Self> {
        let raw = raw.strip_prefix('/')?;
        let mut ambiguous = false;
        let decoded = decode(raw, &mut ambiguous);
        let mut segments: Vec<&str> = Vec::new();
        // A trailing slash means something; one of a dot segment too.
        let mut folder = true;
        for segment in decoded.split('/') {
            folder = matches!(segment, "" | "." | "..");
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                name => segments.push(name),
            }
        }
        let mut normal = String::with_capacity(raw.len() + 1);
        for segment in &segments {
            normal.push('/');
            normal.push_str(segment);
        }
        if folder {
            normal.push('/');
        }
        Some(Self { normal, ambiguous })
    }
}

fn decode(raw: &str, ambiguous: &mut bool) -> String {
    let mut decoded = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(next) = rest.next() {
        if next != '%' {
            *ambiguous |= matches!(next, ';' | '\\') || next.is_ascii_control();
            decoded.push(next);
            continue;
        }
        let code = rest.as_str().get(..2).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some((code, value)) = code.and_then(|code| Some((code, u8::from_str_radix(code, 16).ok()?)))
        else {
            *ambiguous = true;
            decoded.push('%');
            continue;
        };
        if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
            decoded.push(char::from(value));
        } else {
            *ambiguous |= value.is_ascii_control() || b"/\\;%".contains(&value);
            decoded.push('%');
            decoded.push_str(&code.to_ascii_uppercase());
        }
        rest = rest.as_str().get(2..).unwrap_or_default().chars();
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normal_forms() {
        for (raw, normal) in [
            ("/", "/"),
            ("/admin/../user", "/user"),
            ("//admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/%61dmin/%2e%2E/x", "/x"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/../../a", "/a"),
            ("/a//b///", "/a/b/"),
            ("/a%c3%bc", "/a%C3%BC"),
            ("/a%20b", "/a%20b"),
            ("/...", "/..."),
        ] {
            assert_eq!(Path::new(raw), Some(Path { normal: normal.to_owned(), ambiguous: false }), "{raw}");
        }
    }

    #[test]
    fn ambiguous_ones() {
        for raw in [
            "/a%2fb", "/a%2Fb", "/a%5cb", "/a%00", "/a;x=1", "/a%3bx", "/%252e", "/a%", "/a%zz", "/a%0d",
            "/a\\b", "/%ü",
        ] {
            assert!(Path::new(raw).unwrap().ambiguous, "{raw}");
        }
        assert_eq!(Path::new("*"), None);
        assert_eq!(Path::new(""), None);
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(raw in "/([a-c./;%]|%2[eEfF]|%61){0,24}") {
            let once = Path::new(&raw).unwrap();
            prop_assert!(!once.normal.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(!once.normal.contains("//") && once.normal.starts_with('/'));
            if !once.ambiguous {
                prop_assert_eq!(&Path::new(&once.normal).unwrap(), &once);
            }
        }
    }
}
