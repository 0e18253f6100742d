//! Logs: one line an event, to stderr.

use std::io::IsTerminal;

use tracing::Level;

use super::options::{LogFormat, NoticeLevel, RunOptions};

/// Starts logging. Later calls in the same process change nothing.
pub fn start(format: LogFormat, level: Level) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(level >= Level::DEBUG);
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).try_init()
        }
    };
    // Somebody (a test) has set up logging before: theirs stays.
    drop(started);
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
