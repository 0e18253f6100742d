//! The flags of `uvxlan run`: what a flag is, how it is found, and how it is shown.
//!
//! Parsing, help, environment names and the log of settings are all made from one table.

use crate::daemon::options::RunOptions;
use crate::daemon::options::parse::{Invalid, boolean};

mod table;

pub(crate) use table::{FLAGS, STORE_FLAGS, VERSION};

/// How a flag takes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A Go boolean: alone it means true, and the following word is never its value.
    Switch,
    /// One value; the last one given counts.
    Single,
    /// A value each time it is given.
    Repeated,
}

/// Who knows a flag, and thereby the prefix of its environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// flannel v0.11.0 and the newest.
    BothFlannels,
    /// Only flannel newer than v0.11.0.
    NewestFlannel,
    /// Only this program.
    Ours,
}

/// What giving the flag does in this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// What its text says.
    Acted,
    /// Nothing: it is accepted with one warning.
    NotYet,
}

/// Heading in the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Datastore,
    Subnet,
    Files,
    Rules,
    Kubernetes,
    Daemon,
    Logging,
}

impl Group {
    /// The heading's text.
    pub(crate) const fn heading(self) -> &'static str {
        match self {
            Self::Datastore => "Datastore",
            Self::Subnet => "Subnet and interface",
            Self::Files => "Files",
            Self::Rules => "Rules (flannel compatibility)",
            Self::Kubernetes => "Kubernetes (accepted)",
            Self::Daemon => "Daemon",
            Self::Logging => "Logging",
        }
    }
}

type Setter = fn(&mut RunOptions, &str) -> Result<(), Invalid>;

/// One flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    /// Name without dashes.
    pub(crate) name: &'static str,
    /// Other spellings, each noted when used.
    pub(crate) aliases: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) known: Known,
    pub(crate) effect: Effect,
    pub(crate) group: Group,
    /// Placeholder of the value in the help.
    pub(crate) value_name: &'static str,
    /// Value when not given, as text; empty: none.
    pub(crate) default: &'static str,
    pub(crate) hidden: bool,
    /// The value must not be shown.
    pub(crate) secret: bool,
    /// One line.
    pub(crate) summary: &'static str,
    /// What the long help adds, or nothing.
    pub(crate) details: &'static str,
    /// Checks one value and keeps it.
    pub(crate) set: Setter,
}

impl Flag {
    const fn new(group: Group, name: &'static str, summary: &'static str, set: Setter) -> Self {
        Self {
            name,
            aliases: &[],
            kind: Kind::Switch,
            known: Known::BothFlannels,
            effect: Effect::Acted,
            group,
            value_name: "",
            default: "",
            hidden: false,
            secret: false,
            summary,
            details: "",
            set,
        }
    }

    const fn value(self, value_name: &'static str) -> Self {
        Self {
            kind: Kind::Single,
            value_name,
            ..self
        }
    }

    const fn repeated(self, value_name: &'static str) -> Self {
        Self {
            kind: Kind::Repeated,
            value_name,
            ..self
        }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn alias(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn newest(self) -> Self {
        Self {
            known: Known::NewestFlannel,
            ..self
        }
    }

    const fn ours(self) -> Self {
        Self {
            known: Known::Ours,
            ..self
        }
    }

    const fn not_yet(self) -> Self {
        Self {
            effect: Effect::NotYet,
            ..self
        }
    }

    const fn details(self, details: &'static str) -> Self {
        Self { details, ..self }
    }

    /// The name of the environment variable for a spelling of this flag (coreos
    /// `flagutil.SetFlagsFromEnv`: upper case, `-` to `_`).
    pub(crate) fn variable(&self, spelling: &str) -> String {
        let prefix = if self.known == Known::Ours {
            "UVXLAN_"
        } else {
            "FLANNELD_"
        };
        format!(
            "{prefix}{}",
            spelling.to_ascii_uppercase().replace('-', "_")
        )
    }

    /// The flag as a person writes it. flannel's documents write `-v` with one dash.
    pub(crate) fn dashed(&self) -> String {
        dashed(self.name)
    }

    /// Whether this value of an accepted flag asks for something that will not happen.
    pub(crate) fn asks_something(&self, value: &str) -> bool {
        let off = match self.kind {
            Kind::Switch => boolean(value) == Ok(false),
            Kind::Single | Kind::Repeated => matches!(value.trim_ascii(), "" | "0"),
        };
        !off
    }

    /// A value as it may be shown in logs and messages.
    pub(crate) fn shown(&self, value: &str) -> String {
        if self.secret && !value.is_empty() {
            "***".to_owned()
        } else if value.contains("://") && value.contains('@') {
            value
                .split(',')
                .map(without_userinfo)
                .collect::<Vec<_>>()
                .join(",")
        } else {
            value.to_owned()
        }
    }
}

/// A flag name with its dashes.
pub(crate) fn dashed(name: &str) -> String {
    let dashes = if name.chars().count() == 1 { "-" } else { "--" };
    format!("{dashes}{name}")
}

fn without_userinfo(url: &str) -> String {
    match url
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)))
    {
        Some((scheme, (_, host))) => format!("{scheme}://***@{host}"),
        None => url.to_owned(),
    }
}

/// The flag of this name or alias.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS
        .iter()
        .find(|flag| flag.name == name || flag.aliases.contains(&name))
}

/// The flag name nearest to a mistyped one, if any is near.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    /// Below this similarity (0 to 1) a suggestion would only puzzle.
    const NEAR: f64 = 0.4;
    FLAGS
        .iter()
        .filter(|flag| !flag.hidden)
        .flat_map(|flag| {
            let spellings = std::iter::once(&flag.name).chain(flag.aliases);
            spellings.map(move |spelling| {
                (
                    strsim::normalized_damerau_levenshtein(name, spelling),
                    flag.name,
                )
            })
        })
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}
