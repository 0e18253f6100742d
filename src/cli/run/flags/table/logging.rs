//! Flags about the log.

use super::ignored;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::LogFormat;
use crate::daemon::options::parse::{choice, integer};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Logging,
        "v",
        "Verbosity: 0 info, 1 to 3 debug, 4 and more trace",
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
    .not_yet(),
    Flag::new(
        Group::Logging,
        "log_backtrace_at",
        "Stack trace at a line of the source",
        ignored,
    )
    .value("FILE:LINE")
    .not_yet(),
    Flag::new(
        Group::Logging,
        "log-format",
        "Shape of log lines: text, json",
        |to, text| {
            to.log_format = choice(
                text,
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?;
            Ok(())
        },
    )
    .value("FORMAT")
    .default("text")
    .ours(),
];
