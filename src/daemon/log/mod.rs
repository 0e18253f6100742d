//! Logs: one line an event, to stderr, bounded by event and peer.

mod journal;
mod limit;

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::journal::JournalFormat;
use self::limit::Limit;
use super::options::{LogFormat, NoticeLevel, RunOptions};

/// How often it is told what was left out.
const TELL_EVERY: Duration = Duration::from_secs(60);

static LIMIT: OnceLock<Limit> = OnceLock::new();

/// Starts logging. Later calls in the same process change nothing.
pub fn start(format: LogFormat, level: Level) {
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
    let limit = LIMIT.get_or_init(Limit::default).clone();
    let started = tracing_subscriber::registry()
        .with(LevelFilter::from_level(level))
        .with(lines.with_filter(limit))
        .try_init();
    // Somebody (a test) has set up logging before: theirs stays.
    drop(started);
}

/// Tells once a minute which lines were left out. Ends with the runtime.
pub async fn tell_what_is_left_out() {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let left_out = LIMIT.get().map(Limit::take_left_out);
        for (of, lines) in left_out.unwrap_or_default() {
            tracing::warn!(
                event = "log_left_out",
                of,
                lines,
                "too many lines of this event within a minute; uvxlan status tells what is now"
            );
        }
    }
}

/// Logs what was noticed while arguments were read, and every setting that is not a default.
pub fn announce(options: &RunOptions) {
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
