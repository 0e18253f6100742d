//! Turns words into flags with values, by the rules of Go's `flag` package.

use std::collections::VecDeque;

use super::super::flags::{self, Flag, Kind};
use super::super::words::{self, Argument};
use super::{ArgsError, Invocation};
use crate::cli::excerpt;
use crate::daemon::options::parse::boolean;
use crate::daemon::options::{Notice, NoticeLevel};

/// A word that has not been read yet.
struct Word {
    text: String,
    /// Whether it is a whole argument, not a part of a split one.
    whole: bool,
}

/// A flag that was given, with its value.
pub(crate) struct Given {
    pub(crate) flag: &'static Flag,
    pub(crate) value: String,
}

/// Reads words one after the other.
#[derive(Default)]
pub(crate) struct Scan {
    queue: VecDeque<Word>,
    pub(crate) given: Vec<Given>,
    pub(crate) notices: Vec<Notice>,
}

impl Scan {
    pub(crate) fn push(&mut self, text: String) {
        self.queue.push_back(Word { text, whole: true });
    }

    fn note(&mut self, level: NoticeLevel, text: String) {
        self.notices.push(Notice { level, text });
    }

    /// Reads all words. Stops at a request for help and returns it.
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
                    "accepted {name} although its argument begins with a blank; flannel ignores \
                     such an argument"
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
                "split one argument that held several options, and accepted {}; flannel ignores \
                 such an argument",
                names.join(", ")
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
                format!("ignored {count} argument(s) after --"),
            );
            self.queue.clear();
        }
    }

    fn positional(&mut self, text: &str) {
        let last = self.given.last().map(|given| given.flag);
        let hint = match last {
            Some(flag) if flag.kind == Kind::Switch && boolean(text).is_ok() => {
                format!(
                    "; to give a switch its value, write {}={text}",
                    flag.dashed()
                )
            }
            _ => String::new(),
        };
        // What follows a password may be the rest of one that contains blanks.
        let shown = match last {
            Some(flag) if flag.secret => "a word that is not an option".to_owned(),
            _ => format!("the word \"{}\"", excerpt(text)),
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
                argument: excerpt(text),
            });
        }
        match name {
            "h" => return Ok(Some(Invocation::ShortHelp)),
            "help" => return Ok(Some(Invocation::LongHelp)),
            _ => {}
        }
        let Some(flag) = flags::find(name) else {
            return Err(ArgsError::UnknownFlag {
                flag: flags::dashed(&excerpt(name)),
                nearest: flags::nearest_to(name),
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
                format!("read --{name} as {}, flannel's spelling", flag.dashed()),
            );
        }
    }

    /// Takes the next word as the value, whatever it looks like, as Go does.
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
                    "took {:?} as the value of {}, as flannel does; if that value is missing, \
                     write --flag=value",
                    flag.shown(&word.text),
                    flag.dashed()
                ),
            );
        }
        Ok(word.text)
    }
}
