//! Refused records: which, why, and how often.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::hash::BuildHasher;

use super::super::validate::Rejection;

/// Refused and waiting records that are kept. Further ones are only counted, so that a store
/// full of invalid records does not fill the memory.
pub(super) const MAX_KEPT: usize = 4096;
/// Refusals that are recognized, so that a list does not count them again: 8 bytes each.
const MAX_COUNTED: usize = 65_536;
/// Longest name that is kept of a refused record; a lease's own is never longer.
const MAX_NAME: usize = 100;

/// A refused record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: Rejection,
    /// The record that it conflicts with, if that is another host's.
    pub rival: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Refusals {
    refused: BTreeMap<String, Refused>,
    counts: BTreeMap<Rejection, u64>,
    news: Vec<Refused>,
    /// Hashes of name, revision and reason of what was counted.
    counted: HashSet<u64>,
    hasher: RandomState,
}

impl Refusals {
    pub(super) fn all(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    pub(super) fn counts(&self) -> &BTreeMap<Rejection, u64> {
        &self.counts
    }

    pub(super) fn take_news(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.news)
    }

    /// The record was changed or removed.
    pub(super) fn forget(&mut self, name: &str) {
        self.refused.remove(shortened(name));
    }

    pub(super) fn forget_all(&mut self) {
        self.refused.clear();
    }

    /// Refuses one revision of a record. It is counted and logged once for each reason, however
    /// often it is listed.
    pub(super) fn refuse(
        &mut self,
        name: &str,
        revision: i64,
        reason: Rejection,
        rival: Option<String>,
    ) {
        let refused = Refused {
            name: shortened(name).to_owned(),
            reason,
            rival,
        };
        if self.refused.len() < MAX_KEPT {
            self.refused.insert(refused.name.clone(), refused.clone());
        }
        if self.counted.len() >= MAX_COUNTED {
            self.counted.clear();
        }
        let known = self.hasher.hash_one((name, revision, reason));
        if self.counted.insert(known) {
            self.count(refused);
        }
    }

    /// Counts and logs a remark on a record that is in force.
    pub(super) fn note(&mut self, name: &str, reason: Rejection, rival: Option<String>) {
        self.count(Refused {
            name: shortened(name).to_owned(),
            reason,
            rival,
        });
    }

    fn count(&mut self, refused: Refused) {
        *self.counts.entry(refused.reason).or_default() += 1;
        if self.news.len() < MAX_KEPT {
            self.news.push(refused);
        }
    }
}

/// As much of a name as is kept and shown.
fn shortened(name: &str) -> &str {
    let end = (0..=MAX_NAME.min(name.len()))
        .rev()
        .find(|end| name.is_char_boundary(*end));
    &name[..end.unwrap_or(0)]
}
