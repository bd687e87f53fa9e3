//! What the kernel command line says to us: words that start with `wherry.`.

/// Our part of the kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// `wherry.test=1`: this boot may be made to fail on purpose, if the configuration allows it too.
    pub test: bool,
    /// `wherry.data=memory`: no data partition is looked for; what would be stored is lost at power-off.
    pub data_in_memory: bool,
    /// `wherry.off=restart`: power-off is a restart. For virtual machines without a power switch (QEMU's `microvm`) whose
    /// monitor ends at a restart; the kernel would only halt there.
    pub off_is_restart: bool,
}

impl CommandLine {
    /// Reads the text of /proc/cmdline. Words of others, and values of ours that nobody knows, are ignored: an old
    /// system must boot with a newer loader.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        words(text).into_iter().fold(Self::default(), |found, word| match word.as_str() {
            "wherry.test=1" => Self { test: true, ..found },
            "wherry.data=memory" => Self { data_in_memory: true, ..found },
            "wherry.off=restart" => Self { off_is_restart: true, ..found },
            _ => found,
        })
    }
}

/// Splits at blanks outside double quotes, which are dropped, as the kernel does. What follows `--` is init's.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in text.chars() {
        match letter {
            '"' => quoted = !quoted,
            blank if blank.is_whitespace() && !quoted => words.push(String::new()),
            other => {
                if let Some(word) = words.last_mut() {
                    word.push(other);
                }
            }
        }
    }
    words.into_iter().filter(|word| !word.is_empty()).take_while(|word| word != "--").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_others() {
        let text = "console=ttyS0 dm-mod.create=\"vroot,,,ro,0 8 wherry.test=1\" root=/dev/dm-0 wherry.data=memory\n";
        assert_eq!(CommandLine::parse(text), CommandLine { data_in_memory: true, ..CommandLine::default() });
        let expected = CommandLine { test: true, off_is_restart: true, data_in_memory: false };
        assert_eq!(CommandLine::parse("quiet wherry.test=1 wherry.off=restart"), expected);
    }

    #[test]
    fn unknown_and_broken_words_change_nothing() {
        for text in ["", "wherry.test=0 wherry.test wherry.speed=11", "\"wherry.test=1 ", "-- wherry.test=1"]
        {
            assert_eq!(CommandLine::parse(text), CommandLine::default(), "{text}");
        }
    }
}
