//! Bounds what is logged in a minute: ten lines of an event, or ten about each peer where it
//! is about peers. What is left out is counted, and told once a minute. What is said once, at
//! the start, is said whole.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// The time for which lines are counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Events of the start, and of this module: each has its own bound.
const ALWAYS: &[&str] = &["start", "setting", "argument", "log_left_out"];
/// Lines of one event about one peer, or about none.
const OF_A_PEER: u32 = 10;
/// Lines of one event about peers. A network that comes up is told, a flood of records is not.
const OF_PEERS: u32 = 100;
/// Lines of one event that only who looks for a fault wants.
const OF_DEBUGGING: u32 = 1000;
/// Pairs of event and peer that are kept apart; what is beyond shares the event's bound.
const PAIRS: usize = 4096;

/// What a line is about: the event's name, and the peer, subnet or record, if it has one.
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
        let place = match name {
            "event" => &mut self.event,
            "subnet" | "peer" | "name" | "record" => &mut self.peer,
            _ => return,
        };
        place.clear();
        // Writing to a String does not fail.
        let _ = place.write_fmt(value);
    }
}

/// The books of the current minute. Pure: the time is handed in.
#[derive(Debug, Default)]
pub(super) struct Books {
    begun: Option<Instant>,
    pairs: HashMap<Subject, u32>,
    events: HashMap<String, u32>,
    left_out: HashMap<String, u64>,
}

impl Books {
    /// Whether a line about this may be written now.
    pub(super) fn admit(&mut self, subject: Subject, level: Level, now: Instant) -> bool {
        let (of_a_peer, of_an_event) = match subject.peer.as_str() {
            _ if ALWAYS.contains(&subject.event.as_str()) => return true,
            _ if level >= Level::DEBUG => (OF_DEBUGGING, OF_DEBUGGING),
            "" => (OF_A_PEER, OF_A_PEER),
            _ => (OF_A_PEER, OF_PEERS),
        };
        if self.begun.is_none_or(|begun| now - begun >= WINDOW) {
            self.begun = Some(now);
            self.pairs.clear();
            self.events.clear();
        }
        let of_event = self.events.entry(subject.event.clone()).or_default();
        let mut admitted = *of_event < of_an_event;
        let name = subject.event.clone();
        if admitted && (self.pairs.len() < PAIRS || self.pairs.contains_key(&subject)) {
            let of_peer = self.pairs.entry(subject).or_default();
            admitted = *of_peer < of_a_peer;
            *of_peer += u32::from(admitted);
        }
        *of_event += u32::from(admitted);
        if !admitted {
            *self.left_out.entry(name).or_default() += 1;
        }
        admitted
    }

    /// What was left out since the last call, by event.
    pub(super) fn take_left_out(&mut self) -> Vec<(String, u64)> {
        let mut all: Vec<_> = self.left_out.drain().collect();
        all.sort();
        all
    }
}

/// The books as a filter of a log; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limit(Arc<Mutex<Books>>);

impl Limit {
    /// What was left out since the last call, by event.
    pub(crate) fn take_left_out(&self) -> Vec<(String, u64)> {
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        books.take_left_out()
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
            // Of a library: the place it comes from stands for a name.
            subject.event = event.metadata().name().to_owned();
        }
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        books.admit(subject, *event.metadata().level(), Instant::now())
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
    fn a_peer_that_comes_and_goes_is_told_ten_times_a_minute() {
        let mut books = Books::default();
        let start = Instant::now();
        let mut told = |peer, at| {
            (0..25)
                .filter(|_| books.admit(about("peer_added", peer), Level::INFO, at))
                .count()
        };
        assert_eq!(told("10.5.1.0/24", start), 10);
        assert_eq!(told("10.5.2.0/24", start), 10, "another peer has its own");
        assert_eq!(told("10.5.1.0/24", start + WINDOW), 10);
        assert_eq!(books.take_left_out(), [("peer_added".into(), 45)]);
        assert_eq!(books.take_left_out(), []);
    }

    #[test]
    fn an_event_about_many_is_bounded_and_the_others_are_not_hurt() {
        let mut books = Books::default();
        let now = Instant::now();
        let told = (0..20_000)
            .filter(|number| {
                let record = number.to_string();
                books.admit(about("record_refused", &record), Level::WARN, now)
            })
            .count();
        assert_eq!(told, OF_PEERS as usize);
        assert!(books.admit(about("etcd_lost", ""), Level::WARN, now));
        assert!(books.pairs.len() <= PAIRS);
        assert_eq!(books.take_left_out(), [("record_refused".into(), 19_900)]);
    }

    #[test]
    fn an_event_about_nobody_is_told_ten_times_and_those_of_the_start_always() {
        let mut books = Books::default();
        let now = Instant::now();
        let mut told = |event, level| {
            (0..2000)
                .filter(|_| books.admit(about(event, ""), level, now))
                .count()
        };
        assert_eq!(told("etcd_lost", Level::WARN), 10);
        assert_eq!(told("serving", Level::INFO), 10);
        assert_eq!(told("frame", Level::DEBUG), 1000);
        for event in ALWAYS {
            assert_eq!(told(event, Level::INFO), 2000, "{event}");
        }
    }
}
