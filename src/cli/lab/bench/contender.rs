//! The contenders of the bench.

use std::path::{Path, PathBuf};

use crate::testbed::{Pair, TestbedError};

/// This program with other flags, or another build of it.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    name: String,
    /// None for this program.
    program: Option<PathBuf>,
    flags: Vec<String>,
}

/// Parses `NAME=[PROGRAM] [FLAGS]`, split at blanks.
pub(crate) fn parse_variant(text: &str) -> Result<Variant, String> {
    let usage = "expected NAME=FLAGS, like 'one worker=--workers=1', or NAME=PROGRAM FLAGS with \
                 the path of another build";
    let (name, words) = text.split_once('=').ok_or(usage)?;
    let mut flags: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    let program = match flags.first() {
        Some(first) if !first.starts_with('-') => Some(PathBuf::from(flags.remove(0))),
        Some(_) => None,
        None => return Err(usage.into()),
    };
    if name.is_empty() {
        return Err(usage.into());
    }
    Ok(Variant {
        name: name.to_owned(),
        program,
        flags,
    })
}

/// What carries the packets between two containers.
#[derive(Debug, Clone)]
pub(crate) enum Contender {
    Uvxlan,
    Variant(Variant),
    /// The kernel's vxlan, set up as flannel does.
    Kernel,
    /// The same after `ethtool -K flannel.1 tx-checksum-ip-generic off`, which flannel's
    /// troubleshooting page recommends behind NAT.
    Workaround,
}

impl Contender {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Uvxlan => "uvxlan",
            Self::Variant(variant) => &variant.name,
            Self::Kernel => "kernel vxlan",
            Self::Workaround => "kernel, workaround",
        }
    }

    pub(crate) fn is_baseline(&self) -> bool {
        matches!(self, Self::Kernel)
    }

    /// Sets up two hosts with it.
    pub(crate) fn start(&self, program: &Path, folder: &Path) -> Result<Pair, TestbedError> {
        match self {
            Self::Uvxlan => Pair::uvxlan(program, folder, &[]),
            Self::Variant(variant) => {
                let flags: Vec<_> = variant.flags.iter().map(String::as_str).collect();
                let program = variant.program.as_deref().unwrap_or(program);
                Pair::uvxlan(program, folder, &flags)
            }
            Self::Kernel => Pair::kernel(),
            Self::Workaround => {
                let pair = Pair::kernel()?;
                for host in pair.topology.hosts() {
                    let features = [("tx-checksum-ip-generic", false)];
                    host.node().set_features("flannel.1", &features)?;
                }
                Ok(pair)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_has_a_name_and_flags() {
        let variant = parse_variant("two workers=--workers=2 --offload=off").unwrap();
        assert_eq!(variant.name, "two workers");
        assert_eq!(variant.flags, ["--workers=2", "--offload=off"]);
        let other = parse_variant("old=/opt/uvxlan-0.1 --workers=1").unwrap();
        assert_eq!(other.program, Some("/opt/uvxlan-0.1".into()));
        assert_eq!(other.flags, ["--workers=1"]);
        for wrong in ["", "=--x", "name", "name="] {
            assert!(parse_variant(wrong).is_err(), "{wrong}");
        }
    }
}
