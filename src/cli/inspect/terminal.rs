//! Colours and units for a person at a terminal.

use std::io::IsTerminal;

/// Colours the text for a terminal, unless `NO_COLOR` is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(pub(super) bool);

impl Paint {
    pub(super) fn of_stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    /// No colours, for files.
    pub(super) const fn never() -> Self {
        Self(false)
    }

    fn with(self, code: u8, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with(32, text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with(31, text)
    }

    pub(super) fn doubtful(self, text: &str) -> String {
        self.with(33, text)
    }

    pub(super) fn heading(self, text: &str) -> String {
        self.with(1, text)
    }
}

/// Seconds in a unit that is precise enough: `45 s`, `12 min`, `3 h 5 min`, `8 d`.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=3599 => format!("{} min", seconds / 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Bytes with a decimal unit: `512 B`, `1.5 kB`, `3.0 GB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_a_precise_enough_unit() {
        assert_eq!(
            [45, 720, 11_100, 700_000].map(duration),
            ["45 s", "12 min", "3 h 5 min", "8 d"]
        );
        assert_eq!(
            [512, 1500, 3_000_000_000].map(bytes),
            ["512 B", "1.5 kB", "3.0 GB"]
        );
    }
}
