//! The demo's results as a table and as JSON.

use std::time::Duration;

use crate::testbed::traffic::PingReport;

/// One contender.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) figures: Option<Figures>,
    /// Why there are no figures.
    pub(crate) note: Option<String>,
}

/// Measurements between two containers, both directions together.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    sent: u32,
    received: u32,
    rtts: Vec<Duration>,
    ttls: Vec<u8>,
    pub(crate) intact: bool,
    pub(crate) bits_per_second: f64,
}

impl Figures {
    pub(crate) fn add_pings(&mut self, report: &PingReport) {
        self.sent += u32::from(report.sent);
        self.received += u32::from(report.received);
        self.rtts.extend(&report.rtts);
        self.ttls.extend(&report.ttls);
    }

    /// Nothing was lost or changed, and each host counted as one router.
    pub(crate) fn is_good(&self) -> bool {
        self.received == self.sent && self.intact && self.ttls.iter().all(|ttl| *ttl == 62)
    }

    fn rtt_median_us(&self) -> u128 {
        let mut rtts = self.rtts.clone();
        rtts.sort_unstable();
        rtts.get(rtts.len() / 2).map_or(0, Duration::as_micros)
    }

    fn ttl(&self) -> String {
        let mut ttls = self.ttls.clone();
        ttls.sort_unstable();
        ttls.dedup();
        ttls.iter().map(u8::to_string).collect::<Vec<_>>().join(",")
    }
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<14}{:>12}{:>9}{:>6}{:>14}  {}\n",
        "", "RTT median", "lost", "ttl", "1 TCP stream", "transfer"
    );
    for row in rows {
        let line = match (&row.figures, &row.note) {
            (Some(figures), _) => format!(
                "{:<14}{:>9} us{:>9}{:>6}{:>9.2} Gb/s  {}\n",
                row.name,
                figures.rtt_median_us(),
                format!("{}/{}", figures.sent - figures.received, figures.sent),
                figures.ttl(),
                figures.bits_per_second / 1e9,
                if figures.intact {
                    "hash equal"
                } else {
                    "HASH DIFFERS"
                },
            ),
            (None, note) => format!(
                "{:<14}{}\n",
                row.name,
                note.as_deref().unwrap_or("not measured")
            ),
        };
        text.push_str(&line);
    }
    text
}

pub(crate) fn json(rows: &[Row]) -> String {
    let contenders: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| match &row.figures {
            Some(figures) => serde_json::json!({
                "name": row.name,
                "pings_sent": figures.sent,
                "pings_received": figures.received,
                "rtt_median_us": u64::try_from(figures.rtt_median_us()).unwrap_or(u64::MAX),
                "ttl": figures.ttl(),
                "tcp_bits_per_second": figures.bits_per_second,
                "hash_equal": figures.intact,
            }),
            None => serde_json::json!({ "name": row.name, "note": row.note }),
        })
        .collect();
    format!("{}\n", serde_json::json!({ "contenders": contenders }))
}
