//! Arguments that hold several options separated by blanks.
//!
//! systemd replaces `${FLANNEL_OPTIONS}` (with braces) by one argument, blanks included.
//! flannel ignores such an argument if it begins with a blank, and misreads it otherwise. Its
//! author meant several options, so it is split.

use super::flags;

/// One argument where an option is expected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// Nothing but blanks, from an empty variable.
    Blank,
    /// One option or another word, without leading blanks.
    One(String),
    /// Several words, with their quotes removed.
    Several(Vec<String>),
}

/// Decides whether an argument is one option or several.
///
/// It is several if it begins with a dash, has blanks outside quotes, and either the name
/// itself would contain a blank (`--iface eth0`) or a later word is an option. A value with
/// blanks, such as a password, therefore stays whole.
pub(crate) fn unpack(argument: &str) -> Argument {
    let text = argument.trim_ascii();
    if text.is_empty() {
        return Argument::Blank;
    }
    if text.starts_with('-') && text.contains(|character: char| character.is_ascii_whitespace()) {
        let words = split(text);
        if let [first, rest @ ..] = words.as_slice() {
            let several = !first.contains('=') || rest.iter().any(|word| is_option(word));
            if several && !rest.is_empty() {
                return Argument::Several(words);
            }
        }
    }
    Argument::One(argument.trim_ascii_start().to_owned())
}

/// Whether a word ends the value before it: two dashes and a letter, or one dash and the name
/// of a flag (otherwise a single dash may well be text).
pub(crate) fn is_option(word: &str) -> bool {
    match word.strip_prefix("--") {
        Some(name) => name.starts_with(|first: char| first.is_ascii_alphabetic()),
        None => word
            .strip_prefix('-')
            .and_then(|text| text.split('=').next())
            .is_some_and(|name| matches!(name, "h" | "help") || flags::find(name).is_some()),
    }
}

/// Splits at blanks. `'…'` and `"…"` keep blanks together and are removed; unbalanced quotes
/// are ordinary characters.
fn split(text: &str) -> Vec<String> {
    split_quoted(text).unwrap_or_else(|| text.split_ascii_whitespace().map(str::to_owned).collect())
}

fn split_quoted(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for character in text.chars() {
        match quote {
            Some(open) if open == character => quote = None,
            None if matches!(character, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            None if character.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn several(words: &[&str]) -> Argument {
        Argument::Several(words.iter().map(|&word| word.to_owned()).collect())
    }

    fn one(word: &str) -> Argument {
        Argument::One(word.to_owned())
    }

    #[test]
    fn several_options_are_split_and_values_with_blanks_are_not() {
        let table = [
            ("", Argument::Blank),
            (" \t\n", Argument::Blank),
            ("--ip-masq", one("--ip-masq")),
            ("  --ip-masq", one("--ip-masq")),
            ("word and word", one("word and word")),
            ("--iface eth0", several(&["--iface", "eth0"])),
            (
                " --iface=a --ip-masq ",
                several(&["--iface=a", "--ip-masq"]),
            ),
            ("--iface=a -ip-masq", several(&["--iface=a", "-ip-masq"])),
            ("--iface=a -h", several(&["--iface=a", "-h"])),
            ("--iface=a\n--typo", several(&["--iface=a", "--typo"])),
            (
                "--etcd-password=my secret",
                one("--etcd-password=my secret"),
            ),
            ("--etcd-password=a - b -c", one("--etcd-password=a - b -c")),
            (
                "--etcd-password=trailing ",
                one("--etcd-password=trailing "),
            ),
            ("--a='x --y' -v=1", several(&["--a=x --y", "-v=1"])),
            ("--a=\"x --y\"", one("--a=\"x --y\"")),
            ("--a=it's --ip-masq", several(&["--a=it's", "--ip-masq"])),
            ("--a \"\"", several(&["--a", ""])),
        ];
        for (argument, unpacked) in table {
            assert_eq!(unpack(argument), unpacked, "{argument:?}");
        }
    }
}
