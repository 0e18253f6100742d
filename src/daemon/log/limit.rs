//! Limits the log: ten lines a minute for each event, or for each event and peer. Suppressed
//! lines are counted and reported once a minute. What is logged once at the start is not limited.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// How long lines count against a limit.
const WINDOW: Duration = Duration::from_secs(60);
/// Events that are never suppressed: those of the start, and the report of suppressed lines.
const UNLIMITED: &[&str] = &["start", "setting", "argument", "log_left_out"];
/// Lines of one event about one peer, or about no peer.
const PER_PEER: u32 = 10;
/// Lines of one event about any peer: enough for a network that comes up.
const PER_EVENT: u32 = 100;
/// Lines of one debug event.
const PER_DEBUG_EVENT: u32 = 1000;
/// Pairs of event and peer that are counted separately; any further pair counts against its
/// event alone.
const PAIRS: usize = 4096;

/// The event of a line, and the peer, subnet or record that it names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    event: String,
    peer: String,
}

impl Visit for Subject {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format_args!("{value:?}"));
    }
}

impl Subject {
    fn put(&mut self, name: &str, value: fmt::Arguments<'_>) {
        let field = match name {
            "event" => &mut self.event,
            "subnet" | "peer" | "name" | "record" => &mut self.peer,
            _ => return,
        };
        field.clear();
        // Writing to a String does not fail.
        let _ = field.write_fmt(value);
    }
}

/// Lines of the current minute. Pure: the time is a parameter.
#[derive(Debug, Default)]
pub(super) struct LineCounts {
    started: Option<Instant>,
    pairs: HashMap<Subject, u32>,
    events: HashMap<String, u32>,
    suppressed: HashMap<String, u64>,
}

impl LineCounts {
    /// Counts a line, and tells whether it may be written.
    pub(super) fn admit(&mut self, subject: Subject, level: Level, now: Instant) -> bool {
        let (per_peer, per_event) = match subject.peer.as_str() {
            _ if UNLIMITED.contains(&subject.event.as_str()) => return true,
            _ if level >= Level::DEBUG => (PER_DEBUG_EVENT, PER_DEBUG_EVENT),
            // Anybody who can write to the datastore can invent records.
            _ if subject.event == "record_refused" => (PER_PEER, PER_PEER),
            "" => (PER_PEER, PER_PEER),
            _ => (PER_PEER, PER_EVENT),
        };
        if self.started.is_none_or(|started| now - started >= WINDOW) {
            self.started = Some(now);
            self.pairs.clear();
            self.events.clear();
        }
        let event_lines = self.events.entry(subject.event.clone()).or_default();
        let mut admitted = *event_lines < per_event;
        let name = subject.event.clone();
        if admitted && (self.pairs.len() < PAIRS || self.pairs.contains_key(&subject)) {
            let peer_lines = self.pairs.entry(subject).or_default();
            admitted = *peer_lines < per_peer;
            *peer_lines += u32::from(admitted);
        }
        *event_lines += u32::from(admitted);
        if !admitted {
            *self.suppressed.entry(name).or_default() += 1;
        }
        admitted
    }

    /// Lines suppressed since the last call, by event.
    pub(super) fn take_suppressed(&mut self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self.suppressed.drain().collect();
        all.sort();
        all
    }
}

/// The limit as a filter of the log. Clones share their counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limit(Arc<Mutex<LineCounts>>);

impl Limit {
    /// Lines suppressed since the last call, by event.
    pub(crate) fn take_suppressed(&self) -> Vec<(String, u64)> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.take_suppressed()
    }
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let mut subject = Subject::default();
        event.record(&mut subject);
        if subject.event.is_empty() {
            // A library's event has no name: its source location serves as one.
            subject.event = event.metadata().name().to_owned();
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.admit(subject, *event.metadata().level(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(event: &str, peer: &str) -> Subject {
        Subject {
            event: event.into(),
            peer: peer.into(),
        }
    }

    #[test]
    fn a_flapping_peer_is_logged_ten_times_a_minute() {
        let mut counts = LineCounts::default();
        let start = Instant::now();
        let mut logged = |peer, at| {
            (0..25)
                .filter(|_| counts.admit(about("peer_added", peer), Level::INFO, at))
                .count()
        };
        assert_eq!(logged("10.5.1.0/24", start), 10);
        assert_eq!(logged("10.5.2.0/24", start), 10, "another peer has its own");
        assert_eq!(logged("10.5.1.0/24", start + WINDOW), 10);
        assert_eq!(counts.take_suppressed(), [("peer_added".into(), 45)]);
        assert_eq!(counts.take_suppressed(), []);
    }

    #[test]
    fn an_event_about_many_peers_is_limited_and_others_are_not_affected() {
        let mut counts = LineCounts::default();
        let now = Instant::now();
        let logged = (0..20_000)
            .filter(|number| {
                let record = number.to_string();
                counts.admit(about("peer_added", &record), Level::WARN, now)
            })
            .count();
        assert_eq!(logged, PER_EVENT as usize);
        assert!(counts.admit(about("etcd_lost", ""), Level::WARN, now));
        assert!(counts.pairs.len() <= PAIRS);
        assert_eq!(counts.take_suppressed(), [("peer_added".into(), 19_900)]);
    }

    #[test]
    fn an_event_about_no_peer_is_logged_ten_times_and_those_of_the_start_always() {
        let mut counts = LineCounts::default();
        let now = Instant::now();
        let mut logged = |event, level| {
            (0..2000)
                .filter(|_| counts.admit(about(event, ""), level, now))
                .count()
        };
        assert_eq!(logged("etcd_lost", Level::WARN), 10);
        assert_eq!(logged("serving", Level::INFO), 10);
        assert_eq!(logged("frame", Level::DEBUG), 1000);
        for event in UNLIMITED {
            assert_eq!(logged(event, Level::INFO), 2000, "{event}");
        }
    }

    #[test]
    fn refused_records_share_one_limit() {
        let mut counts = LineCounts::default();
        let now = Instant::now();
        let logged = (0..10_000)
            .filter(|number| {
                let record = number.to_string();
                counts.admit(about("record_refused", &record), Level::WARN, now)
            })
            .count();
        assert_eq!(logged, PER_PEER as usize);
    }
}
