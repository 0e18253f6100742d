//! Flags about the log.

use super::{ignored, put};
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::LogFormat;
use crate::daemon::options::parse::{choice, integer};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Logging,
        "v",
        "Verbosity: 0 info, 1 to 3 debug, 4 and higher trace",
        |to, text| {
            let number = integer(text, i32::MIN.into(), i32::MAX.into())?;
            to.verbosity = i32::try_from(number).unwrap_or(0);
            Ok(())
        },
    )
    .value("N")
    .default("0"),
    Flag::new(
        Group::Logging,
        "vmodule",
        "Verbosity by source file",
        ignored,
    )
    .value("PATTERNS")
    .without_effect(),
    Flag::new(
        Group::Logging,
        "log_backtrace_at",
        "Print a stack trace when this source line logs",
        ignored,
    )
    .value("FILE:LINE")
    .without_effect(),
    Flag::new(
        Group::Logging,
        "log-format",
        "Format of log lines: text, json",
        |to, text| {
            let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
            put(&mut to.log_format, choice(text, &words))
        },
    )
    .value("FORMAT")
    .default("text")
    .ours()
    .details("One line for each event, with a stable name (event=); docs/events.md lists them."),
];
