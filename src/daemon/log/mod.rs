//! Logs: one line an event, to stderr, limited by event and peer.

mod journal;
mod limit;

use std::io::IsTerminal;
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::journal::JournalFormat;
pub(crate) use self::limit::Limit;
use super::options::{LogFormat, NoticeLevel, RunOptions};

const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Starts logging. Returns the limit that the lines are subject to. Later calls in the same
/// process change nothing.
pub(crate) fn start(format: LogFormat, level: Level) -> Limit {
    let with_target = level >= Level::DEBUG;
    let lines = layer()
        .with_writer(std::io::stderr)
        .with_target(with_target);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text if journal::is_stderr() => lines
            .event_format(JournalFormat::new(with_target))
            .with_ansi(false)
            .boxed(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colours).boxed()
        }
    };
    let limit = Limit::default();
    let started = tracing_subscriber::registry()
        .with(LevelFilter::from_level(level))
        .with(lines.with_filter(limit.clone()))
        .try_init();
    // If a test has set up logging before, that stays.
    drop(started);
    limit
}

/// Logs once a minute how many lines were suppressed. Ends with the runtime.
pub(crate) async fn report_suppressed(limit: Limit) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        for (of, lines) in limit.take_suppressed() {
            tracing::warn!(
                event = "log_left_out",
                of,
                lines,
                "suppressed further lines of this event in the last minute; uvxlan status shows the current state"
            );
        }
    }
}

/// Logs notices about the arguments, and every setting that is not a default.
pub(crate) fn announce(options: &RunOptions) {
    tracing::info!(
        event = "start",
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id()
    );
    for notice in &options.notices {
        match notice.level {
            NoticeLevel::Info => tracing::info!(event = "argument", "{}", notice.text),
            NoticeLevel::Warn => tracing::warn!(event = "argument", "{}", notice.text),
            NoticeLevel::Error => tracing::error!(event = "argument", "{}", notice.text),
        }
    }
    for setting in &options.settings {
        if setting.origin == super::options::Origin::Default {
            tracing::debug!(event = "setting", "{setting}");
        } else {
            tracing::info!(event = "setting", "{setting}");
        }
    }
}
