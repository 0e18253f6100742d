//! Turns flags and variables into typed options, with remarks on them for the log.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::super::flags::{self, FLAGS, Flag, Kind, Source};
use super::ArgsError;
use super::scan::Given;
use crate::cli::nearest;
use crate::daemon::options::parse::{Invalid, boolean};
use crate::daemon::options::{Notice, NoticeLevel, Origin, RunOptions, Setting};

/// The variables with flannel's prefix or ours, by name.
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

    /// Name and value of the variable for a flag; its name comes before its aliases.
    fn get(&self, flag: &Flag) -> Option<(String, &OsString)> {
        flag.spellings().find_map(|spelling| {
            let name = flag.variable(spelling);
            let value = self.variables.get(&name)?;
            Some((name, value))
        })
    }
}

/// Fills [`RunOptions`].
pub(crate) struct Assignment {
    pub(crate) options: RunOptions,
    /// By flag name: the value as text, its origin, and the flag or variable that gave it.
    set: BTreeMap<&'static str, (String, Origin, String)>,
    /// Whether `--version` was given, and not followed by `--version=false`.
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
                    format!("ignored {variable}: its value is not valid UTF-8"),
                );
                continue;
            };
            match (flag.set)(&mut self.options, value) {
                Ok(()) => self.record(flag, value, Origin::Environment, variable),
                Err(Invalid::Type(expected)) => {
                    let shown = flag.shown(value);
                    self.note(
                        NoticeLevel::Error,
                        format!("ignored {variable}={shown:?}: expected {expected}"),
                    );
                }
                Err(invalid) => return Err(refusal(flag, &variable, value, invalid)),
            }
        }
        self.note_unknown_variables(environment);
        Ok(())
    }

    /// Warns of variables that are similar to one of a flag. Others are left alone: Kubernetes,
    /// for one, makes variables from the names of services.
    fn note_unknown_variables(&mut self, environment: &Environment) {
        const SIMILAR: f64 = 0.85;
        let known: Vec<String> = FLAGS
            .iter()
            .flat_map(|flag| flag.spellings().map(|name| flag.variable(name)))
            .collect();
        let suffix = |name: &str| name.split_once('_').map_or("", |(_, rest)| rest).to_owned();
        for name in environment.variables.keys() {
            if known.contains(name) {
                continue;
            }
            let candidates = known.iter().map(|known| (suffix(known), known));
            if let Some(meant) = nearest(&suffix(name), candidates, SIMILAR) {
                let text =
                    format!("the environment variable {name} sets no flag; did you mean {meant}?");
                self.note(NoticeLevel::Warn, text);
            }
        }
    }

    /// Adds all settings as text, and remarks on those that need one.
    pub(crate) fn remark(&mut self) {
        for flag in FLAGS.iter().filter(|flag| flag.name != flags::VERSION) {
            let (value, origin, source_name) = match self.set.remove(flag.name) {
                Some((value, origin, source_name)) => (value, origin, Some(source_name)),
                None => (default_text(flag), Origin::Default, None),
            };
            if let Some(source_name) = source_name.filter(|_| flag.is_enabled_by(&value)) {
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
        if flag.without_effect {
            self.note(
                NoticeLevel::Warn,
                format!("{source_name} is accepted but has no effect yet"),
            );
        }
        if flag.secret && origin == Origin::CommandLine {
            let text = format!(
                "every user of this host can read {source_name} on the command line; set {} in the \
                 environment instead",
                flag.variable(flag.name)
            );
            self.note(NoticeLevel::Warn, text);
        }
        let etcd_only = flag.source != Source::Uvxlan && flag.name.starts_with("etcd-");
        if etcd_only && self.options.store.directory.is_some() {
            let text = format!("{source_name} has no effect with --store=dir:PATH");
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
