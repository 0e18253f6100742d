//! From words to flags with their values, by the rules of Go's `flag` package.

use std::collections::VecDeque;

use super::super::flags::{self, Flag, Kind};
use super::super::words::{self, Argument};
use super::{ArgsError, Invocation, Notice, NoticeLevel};
use crate::daemon::options::parse::boolean;

/// A word still to be read.
struct Word {
    text: String,
    /// An argument of its own, not a part of a split one.
    whole: bool,
}

/// A flag with its value, as `--flag=value`.
pub(crate) struct Given {
    pub(crate) flag: &'static Flag,
    pub(crate) value: String,
}

/// Words on their way to flags.
#[derive(Default)]
pub(crate) struct Scan {
    queue: VecDeque<Word>,
    pub(crate) given: Vec<Given>,
    pub(crate) notices: Vec<Notice>,
}

impl Scan {
    /// Adds an argument behind those added before.
    pub(crate) fn push(&mut self, text: String) {
        self.queue.push_back(Word { text, whole: true });
    }

    fn note(&mut self, level: NoticeLevel, text: String) {
        self.notices.push(Notice { level, text });
    }

    /// Reads all words. `Some` when help is asked for; what stands behind does not matter then.
    pub(crate) fn read_all(&mut self) -> Result<Option<Invocation>, ArgsError> {
        while let Some(word) = self.queue.pop_front() {
            let text = match words::unpack(&word.text) {
                _ if !word.whole => word.text,
                Argument::Blank => continue,
                Argument::One(text) => {
                    self.note_leading_blank(&word.text, &text);
                    text
                }
                Argument::Several(words) => {
                    self.unroll(words);
                    continue;
                }
            };
            if text == "--" {
                self.end_of_options();
            } else if text == "-" || !text.starts_with('-') {
                self.positional(&text);
            } else if let Some(help) = self.option(&text)? {
                return Ok(Some(help));
            }
        }
        Ok(None)
    }

    fn note_leading_blank(&mut self, raw: &str, text: &str) {
        if raw.starts_with(|first: char| first.is_ascii_whitespace()) && words::is_option(text) {
            let name = text.split('=').next().unwrap_or_default();
            self.note(
                NoticeLevel::Info,
                format!(
                    "honoured {name} although its argument begins with a blank (flannel ignores \
                     such an argument)"
                ),
            );
        }
    }

    fn unroll(&mut self, words: Vec<String>) {
        let names: Vec<&str> = words
            .iter()
            .filter(|word| words::is_option(word))
            .filter_map(|word| word.split('=').next())
            .collect();
        self.note(
            NoticeLevel::Info,
            format!(
                "one argument held several options with blanks between them (flannel ignores \
                 such an argument); split at the blanks and honoured: {}",
                names.join(" ")
            ),
        );
        for text in words.into_iter().rev() {
            self.queue.push_front(Word { text, whole: false });
        }
    }

    fn end_of_options(&mut self) {
        if !self.queue.is_empty() {
            let count = self.queue.len();
            self.note(
                NoticeLevel::Warn,
                format!("ignored {count} argument(s) behind --"),
            );
            self.queue.clear();
        }
    }

    fn positional(&mut self, text: &str) {
        let last = self.given.last().map(|given| given.flag);
        let hint = match last {
            Some(flag) if flag.kind == Kind::Switch && boolean(text).is_ok() => {
                format!("; a boolean takes its value as {}={text}", flag.dashed())
            }
            _ => String::new(),
        };
        // What stands behind a password may be the rest of one with blanks in it.
        let shown = match last {
            Some(flag) if flag.secret => "a word that is no option".to_owned(),
            _ => format!("the word {:?}", text.chars().take(60).collect::<String>()),
        };
        self.note(NoticeLevel::Warn, format!("ignored {shown}{hint}"));
    }

    fn option(&mut self, text: &str) -> Result<Option<Invocation>, ArgsError> {
        let body = text
            .strip_prefix("--")
            .or_else(|| text.strip_prefix('-'))
            .unwrap_or(text);
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(ArgsError::BadSyntax {
                argument: printable(text),
            });
        }
        match name {
            "h" => return Ok(Some(Invocation::ShortHelp)),
            "help" => return Ok(Some(Invocation::LongHelp)),
            _ => {}
        }
        let Some(flag) = flags::find(name) else {
            return Err(ArgsError::UnknownFlag {
                flag: flags::dashed(&printable(name)),
                nearest: flags::nearest(name),
            });
        };
        self.note_alias(flag, name);
        let value = match (flag.kind, value) {
            (_, Some(value)) => value,
            (Kind::Switch, None) => "true".to_owned(),
            (Kind::Single | Kind::Repeated, None) => self.following_value(flag)?,
        };
        self.given.push(Given { flag, value });
        Ok(None)
    }

    fn note_alias(&mut self, flag: &Flag, name: &str) {
        if name != flag.name {
            self.note(
                NoticeLevel::Info,
                format!(
                    "took --{name} as {}, which is flannel's spelling",
                    flag.dashed()
                ),
            );
        }
    }

    /// The next word, whatever it looks like: so does Go.
    fn following_value(&mut self, flag: &Flag) -> Result<String, ArgsError> {
        let Some(word) = self.queue.pop_front() else {
            return Err(ArgsError::MissingValue {
                flag: flag.dashed(),
            });
        };
        if words::is_option(&word.text) {
            self.note(
                NoticeLevel::Warn,
                format!(
                    "took {:?} as the value of {}, as flannel does; write --flag=value if a value \
                     is missing",
                    flag.shown(&word.text),
                    flag.dashed()
                ),
            );
        }
        Ok(word.text)
    }
}

/// A part of the command line fit for a message: short, and without control characters.
fn printable(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}
