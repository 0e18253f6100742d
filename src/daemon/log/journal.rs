//! Lines for the journal: it adds the time itself, and takes the priority from `<N>` before a line
//! (`sd-daemon(3)`).
//!
//! Fields stay in the line. The journal's own protocol would transfer them separately, but it takes
//! a socket, and system calls that packet threads may not make; `--log-format=json` separates them
//! too.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Whether stderr is connected to the journal (`JOURNAL_STREAM`, `systemd.exec(5)`).
pub(super) fn is_stderr() -> bool {
    let Some(expected) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(found) = rustix::fs::fstat(std::io::stderr()) else {
        return false;
    };
    expected.to_str() == Some(&format!("{}:{}", found.st_dev, found.st_ino))
}

/// A line with its priority and without time.
pub(super) struct JournalFormat {
    inner: Format<tracing_subscriber::fmt::format::Full, ()>,
}

impl JournalFormat {
    pub(super) fn new(with_target: bool) -> Self {
        Self {
            inner: Format::default()
                .without_time()
                .with_level(false)
                .with_ansi(false)
                .with_target(with_target),
        }
    }
}

/// Priorities of `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.inner.format_event(context, writer, event)
    }
}
