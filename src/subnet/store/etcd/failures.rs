//! Why a request failed, member by member.

use std::fmt;

/// The last failure of each member.
#[derive(Debug, Default, thiserror::Error)]
pub(in super::super) struct Failures(Vec<(String, String)>);

impl Failures {
    pub(in super::super) fn note(&mut self, endpoint: &str, text: String) {
        match self.0.iter_mut().find(|(known, _)| known == endpoint) {
            Some((_, old)) => *old = text,
            None => self.0.push((endpoint.to_owned(), text)),
        }
    }

    pub(in super::super) fn keep_only(&mut self, endpoint: &str) {
        self.0.retain(|(known, _)| known == endpoint);
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (endpoint, text)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {text}")?;
        }
        Ok(())
    }
}
