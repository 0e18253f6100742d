//! The process itself, under the names that all exporters use (`process_…`).

use std::fs;

/// What `/proc` says about this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Process {
    /// When it was started, as Unix time.
    pub(super) start: Option<f64>,
    /// CPU time of all threads.
    pub(super) cpu_seconds: Option<f64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let page = rustix::param::page_size() as u64;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let (stat, statm) = (read("/proc/self/stat"), read("/proc/self/statm"));
        let mut process = Self::parse([&stat, &statm, &read("/proc/stat")], page, ticks);
        // One of them is the listing's.
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count);
        process.open_fds = open
            .ok()
            .and_then(|count| u64::try_from(count).ok()?.checked_sub(1));
        process.max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        process
    }

    /// Parses the texts of `proc_pid_stat(5)`, `proc_pid_statm(5)` and `proc_stat(5)`.
    fn parse([stat, statm, system]: [&str; 3], page: u64, ticks: f64) -> Self {
        let number = |text: &str, at: usize| -> Option<u64> {
            text.split_ascii_whitespace().nth(at)?.parse().ok()
        };
        // The name may contain spaces; the third field follows it.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let time = |at| number(fields, at);
        let boot = system.lines().find_map(|line| line.strip_prefix("btime "));
        let boot: Option<f64> = boot.and_then(|text| text.trim().parse().ok());
        Self {
            start: boot
                .zip(time(19))
                .map(|(boot, after)| boot + after as f64 / ticks),
            cpu_seconds: time(11)
                .zip(time(12))
                .map(|(user, system)| (user + system) as f64 / ticks),
            resident_bytes: number(statm, 1).map(|pages| pages * page),
            virtual_bytes: number(statm, 0).map(|pages| pages * page),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_end_of_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 0 9 0 0 0 150 50 0 0 20 0 3 0 5 0 0";
        let system = "cpu 1 2 3\nbtime 1700000000\n";
        let process = Process::parse([stat, "100 30 5 1 0 9 0", system], 4096, 100.0);
        assert_eq!(process.start, Some(1_700_000_000.05));
        assert_eq!(process.cpu_seconds, Some(2.0));
        assert_eq!(process.resident_bytes, Some(30 * 4096));
        assert_eq!(process.virtual_bytes, Some(100 * 4096));
        assert_eq!(Process::parse([""; 3], 4096, 100.0), Process::default());
    }

    #[test]
    fn this_process_is_read() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(process.open_fds.is_some_and(|count| count >= 3));
        assert!(process.cpu_seconds.is_some() && process.start.is_some());
    }
}
