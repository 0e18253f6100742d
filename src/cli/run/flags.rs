//! The flags of `uvxlan run`: what a flag is, how it is found, and how it is shown.
//!
//! Parsing, help, `docs/flags.md`, environment names and the log of settings are all made from
//! one table.

use crate::cli::nearest;
use crate::daemon::options::RunOptions;
use crate::daemon::options::parse::{Invalid, boolean};

mod table;

pub(crate) use table::{FLAGS, STORE_FLAGS, VERSION};

/// How a flag takes its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A Go boolean: alone it means true, and the next word is never its value.
    Switch,
    /// One value; the last one given counts.
    Single,
    /// One value each time it is given.
    Repeated,
}

/// Which program introduced a flag; decides the prefix of its environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// flannel, v0.11.0 and later.
    Flannel,
    /// flannel, later than v0.11.0.
    NewerFlannel,
    Uvxlan,
}

/// Section of the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Datastore,
    Interface,
    Lease,
    PeerCheck,
    Files,
    Firewall,
    Kubernetes,
    Daemon,
    Logging,
}

impl Group {
    /// In the order of the help.
    pub(crate) const ALL: [Self; 9] = [
        Self::Datastore,
        Self::Interface,
        Self::Lease,
        Self::PeerCheck,
        Self::Files,
        Self::Firewall,
        Self::Kubernetes,
        Self::Daemon,
        Self::Logging,
    ];

    pub(crate) const fn heading(self) -> &'static str {
        match self {
            Self::Datastore => "Datastore",
            Self::Interface => "Interface and addresses",
            Self::Lease => "Network and lease",
            Self::PeerCheck => "Peer check",
            Self::Files => "Files",
            Self::Firewall => "Firewall rules and routes",
            Self::Kubernetes => "Kubernetes (accepted, not supported yet)",
            Self::Daemon => "Daemon and packet threads",
            Self::Logging => "Logging",
        }
    }
}

type Setter = fn(&mut RunOptions, &str) -> Result<(), Invalid>;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    /// Name without dashes.
    pub(crate) name: &'static str,
    /// Other spellings; using one is noted in the log.
    pub(crate) aliases: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) source: Source,
    /// Accepted with a warning, but has no effect yet.
    pub(crate) without_effect: bool,
    pub(crate) group: Group,
    /// Placeholder of the value in the help.
    pub(crate) value_name: &'static str,
    /// Default as text, or nothing.
    pub(crate) default: &'static str,
    pub(crate) hidden: bool,
    /// The value must not be shown.
    pub(crate) secret: bool,
    /// One line.
    pub(crate) summary: &'static str,
    /// What the long help adds, or nothing.
    pub(crate) details: &'static str,
    /// Checks one value and stores it.
    pub(crate) set: Setter,
}

impl Flag {
    const fn new(group: Group, name: &'static str, summary: &'static str, set: Setter) -> Self {
        Self {
            name,
            aliases: &[],
            kind: Kind::Switch,
            source: Source::Flannel,
            without_effect: false,
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

    const fn newer(self) -> Self {
        Self {
            source: Source::NewerFlannel,
            ..self
        }
    }

    const fn ours(self) -> Self {
        Self {
            source: Source::Uvxlan,
            ..self
        }
    }

    const fn without_effect(self) -> Self {
        Self {
            without_effect: true,
            ..self
        }
    }

    const fn details(self, details: &'static str) -> Self {
        Self { details, ..self }
    }

    /// The environment variable for a spelling of this flag (coreos
    /// `flagutil.SetFlagsFromEnv`: upper case, `-` to `_`).
    pub(crate) fn variable(&self, spelling: &str) -> String {
        let prefix = match self.source {
            Source::Uvxlan => "UVXLAN_",
            Source::Flannel | Source::NewerFlannel => "FLANNELD_",
        };
        format!(
            "{prefix}{}",
            spelling.to_ascii_uppercase().replace('-', "_")
        )
    }

    /// The name and the aliases.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    pub(crate) fn dashed(&self) -> String {
        dashed(self.name)
    }

    /// The summary, and what else belongs into one line of help.
    pub(crate) fn headline(&self) -> String {
        let repeats = match self.kind {
            Kind::Repeated => " (may repeat)",
            Kind::Switch | Kind::Single => "",
        };
        let effect = match self.without_effect {
            true => "; no effect yet",
            false => "",
        };
        format!("{}{repeats}{effect}", self.summary)
    }

    /// Whether this value of a flag asks for something, rather than switching it off.
    pub(crate) fn is_enabled_by(&self, value: &str) -> bool {
        match self.kind {
            Kind::Switch => boolean(value) != Ok(false),
            Kind::Single | Kind::Repeated => !matches!(value.trim_ascii(), "" | "0"),
        }
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

/// A flag name with its dashes. flannel's documents write `-v` with one.
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

/// The flag with this name or alias.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS
        .iter()
        .find(|flag| flag.spellings().any(|spelling| spelling == name))
}

/// The name of the flag most similar to a mistyped one, if any is similar enough.
pub(crate) fn nearest_to(name: &str) -> Option<&'static str> {
    /// A suggestion less similar than this would only puzzle.
    const SIMILAR: f64 = 0.4;
    let known = FLAGS.iter().filter(|flag| !flag.hidden);
    let spellings = known.flat_map(|flag| flag.spellings().map(|spelling| (spelling, flag.name)));
    nearest(name, spellings, SIMILAR)
}
