//! From flags and variables to typed options, and what is to be said about them.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::super::flags::{self, Effect, FLAGS, Flag, Kind, Known};
use super::scan::Given;
use super::{ArgsError, Notice, NoticeLevel, Origin, RunOptions, Setting};
use crate::daemon::options::parse::{Invalid, boolean};

/// The variables that concern us, by name.
pub(crate) struct Environment {
    variables: BTreeMap<String, OsString>,
}

impl Environment {
    pub(crate) fn new<E: IntoIterator<Item = (OsString, OsString)>>(environment: E) -> Self {
        let ours = |name: &String| name.starts_with("FLANNELD_") || name.starts_with("UVXLAN_");
        let variables = environment
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| Some((name.into_string().ok().filter(ours)?, value)))
            .collect();
        Self { variables }
    }

    /// Name and value of the variable for a flag, its own spelling before its aliases.
    fn get(&self, flag: &Flag) -> Option<(String, &OsString)> {
        std::iter::once(&flag.name)
            .chain(flag.aliases)
            .find_map(|spelling| {
                let name = flag.variable(spelling);
                let value = self.variables.get(&name)?;
                Some((name, value))
            })
    }
}

/// Values on their way into [`RunOptions`].
pub(crate) struct Assignment {
    pub(crate) options: RunOptions,
    /// By flag name: value as text, origin, and the flag or variable it came by.
    set: BTreeMap<&'static str, (String, Origin, String)>,
    /// Whether `--version` was given, and not taken back.
    pub(crate) version: bool,
}

impl Assignment {
    pub(crate) fn new(notices: Vec<Notice>) -> Self {
        let options = RunOptions {
            notices,
            ..RunOptions::default()
        };
        Self {
            options,
            set: BTreeMap::new(),
            version: false,
        }
    }

    fn note(&mut self, level: NoticeLevel, text: String) {
        self.options.notices.push(Notice { level, text });
    }

    pub(crate) fn command_line(&mut self, given: &[Given]) -> Result<(), ArgsError> {
        for Given { flag, value } in given {
            let source_name = flag.dashed();
            (flag.set)(&mut self.options, value)
                .map_err(|invalid| refusal(flag, &source_name, value, invalid))?;
            if flag.name == flags::VERSION {
                self.version = boolean(value) == Ok(true);
            }
            self.record(flag, value, Origin::CommandLine, source_name);
        }
        Ok(())
    }

    fn record(&mut self, flag: &'static Flag, value: &str, origin: Origin, source_name: String) {
        let shown = flag.shown(value);
        match self.set.get_mut(flag.name) {
            Some(entry) if flag.kind == Kind::Repeated => {
                entry.0.push(',');
                entry.0.push_str(&shown);
            }
            _ => {
                self.set.insert(flag.name, (shown, origin, source_name));
            }
        }
    }

    pub(crate) fn environment(&mut self, environment: &Environment) -> Result<(), ArgsError> {
        for flag in FLAGS.iter().filter(|flag| flag.name != flags::VERSION) {
            if self.set.contains_key(flag.name) {
                continue;
            }
            let Some((variable, value)) = environment.get(flag) else {
                continue;
            };
            let Some(value) = value.to_str() else {
                self.note(
                    NoticeLevel::Error,
                    format!("{variable} is not valid UTF-8; ignored"),
                );
                continue;
            };
            match (flag.set)(&mut self.options, value) {
                Ok(()) => self.record(flag, value, Origin::Environment, variable),
                Err(Invalid::Type(expected)) => {
                    let shown = flag.shown(value);
                    self.note(
                        NoticeLevel::Error,
                        format!(
                            "{shown:?} is not a value for {variable}: expected {expected}; ignored"
                        ),
                    );
                }
                Err(invalid) => return Err(refusal(flag, &variable, value, invalid)),
            }
        }
        self.note_strange_variables(environment);
        Ok(())
    }

    /// Remarks on variables that look like one of ours and are not. Others are left alone:
    /// Kubernetes, for one, makes variables from the names of services.
    fn note_strange_variables(&mut self, environment: &Environment) {
        const NEAR: f64 = 0.85;
        let known: Vec<String> = FLAGS
            .iter()
            .flat_map(|flag| {
                std::iter::once(&flag.name)
                    .chain(flag.aliases)
                    .map(|name| flag.variable(name))
            })
            .collect();
        let suffix = |name: &str| name.split_once('_').map(|(_, rest)| rest.to_owned());
        for name in environment
            .variables
            .keys()
            .filter(|name| !known.contains(name))
        {
            let nearest = known
                .iter()
                .map(|known| {
                    (
                        strsim::normalized_damerau_levenshtein(
                            &suffix(name).unwrap_or_default(),
                            &suffix(known).unwrap_or_default(),
                        ),
                        known,
                    )
                })
                .filter(|(similarity, _)| *similarity >= NEAR)
                .max_by(|left, right| left.0.total_cmp(&right.0));
            if let Some((_, known)) = nearest {
                self.note(
                    NoticeLevel::Warn,
                    format!("the environment variable {name} names no flag; did you mean {known}?"),
                );
            }
        }
    }

    /// Adds the settings as text, and what is to be said about them.
    pub(crate) fn remark(&mut self) {
        for flag in FLAGS.iter().filter(|flag| flag.name != flags::VERSION) {
            let (value, origin, source_name) = match self.set.remove(flag.name) {
                Some((value, origin, source_name)) => (value, origin, Some(source_name)),
                None => (default_text(flag), Origin::Default, None),
            };
            if let Some(source_name) = source_name.filter(|_| flag.asks_something(&value)) {
                self.remark_on(flag, origin, &source_name);
            }
            self.options.settings.push(Setting {
                name: flag.name,
                value,
                origin,
            });
        }
    }

    fn remark_on(&mut self, flag: &Flag, origin: Origin, source_name: &str) {
        match flag.effect {
            Effect::Acted => {}
            Effect::NotYet => {
                self.note(
                    NoticeLevel::Warn,
                    format!("{source_name} is accepted, has no effect yet"),
                );
            }
        }
        if flag.secret && origin == Origin::CommandLine {
            let text = format!(
                "{source_name} on the command line can be read by every user of this host; \
                 {} in the environment cannot",
                flag.variable(flag.name)
            );
            self.note(NoticeLevel::Warn, text);
        }
        let etcd_only = flag.known != Known::Ours && flag.name.starts_with("etcd-");
        if etcd_only && self.options.store.directory.is_some() {
            let text = format!("{source_name} has no effect with --store dir:PATH");
            self.note(NoticeLevel::Info, text);
        }
    }
}

fn default_text(flag: &Flag) -> String {
    match (flag.kind, flag.default) {
        (Kind::Switch, "") => "false".to_owned(),
        (_, default) => default.to_owned(),
    }
}

pub(crate) fn refusal(flag: &Flag, source_name: &str, value: &str, invalid: Invalid) -> ArgsError {
    let source_name = source_name.to_owned();
    match invalid {
        Invalid::Type(expected) | Invalid::Value(expected) => ArgsError::BadValue {
            source_name,
            value: flag.shown(value),
            expected,
        },
        Invalid::KubeSubnetManager => ArgsError::KubeSubnetManager { source_name },
    }
}
