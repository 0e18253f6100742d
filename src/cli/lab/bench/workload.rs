//! What the bench measures, and in which units.

use std::time::Duration;

use crate::testbed::traffic::{
    BlastRequest, PingPongRequest, StreamRequest, tcp_streams, udp_blast, udp_echo, udp_ping_pong,
};
use crate::testbed::{Pair, TestbedError};

/// A measurement between the containers of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    Tcp {
        streams: usize,
    },
    /// Datagrams of one flow, as many as the sender can make.
    Udp {
        payload_len: usize,
    },
    /// One small datagram at a time, there and back.
    PingPong,
}

const TCP1: Workload = Workload::Tcp { streams: 1 };
const TCP4: Workload = Workload::Tcp { streams: 4 };
const UDP64: Workload = Workload::Udp { payload_len: 64 };
const UDP1400: Workload = Workload::Udp { payload_len: 1400 };
const ALL: [(&str, Workload); 5] = [
    ("tcp1", TCP1),
    ("tcp4", TCP4),
    ("udp64", UDP64),
    ("udp1400", UDP1400),
    ("pingpong", Workload::PingPong),
];

/// The result of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// In the workload's unit.
    pub(crate) value: f64,
    /// CPU seconds of the whole machine for each gigabit.
    pub(crate) cpu_per_gigabit: Option<f64>,
}

pub(crate) fn parse(text: &str) -> Result<Workload, String> {
    let known = ALL.iter().find(|(name, _)| *name == text);
    known
        .map(|(_, workload)| *workload)
        .ok_or_else(|| "expected tcp1, tcp4, udp64, udp1400 or pingpong".into())
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        ALL.iter()
            .find(|(_, workload)| *workload == self)
            .map_or("", |(name, _)| name)
    }

    pub(crate) fn title(self) -> String {
        match self {
            Self::Tcp { streams: 1 } => "1 TCP stream".into(),
            Self::Tcp { streams } => format!("{streams} TCP streams"),
            Self::Udp { payload_len } => format!("{payload_len}-byte UDP delivered"),
            Self::PingPong => "UDP round trip, median".into(),
        }
    }

    /// The unit, and the divisor to it from the basic unit (bit/s, datagrams/s, seconds).
    pub(crate) const fn unit(self) -> (&'static str, f64) {
        match self {
            Self::Tcp { .. } => ("Gb/s", 1e9),
            Self::Udp { .. } => ("k/s", 1e3),
            Self::PingPong => ("us", 1e-6),
        }
    }

    /// Measures once, from the first container to the second.
    pub(crate) fn run(self, pair: &Pair, duration: Duration) -> Result<Sample, TestbedError> {
        let [a, b] = &pair.containers;
        let (from, to, address) = (a.namespace(), b.namespace(), b.address());
        match self {
            Self::Tcp { streams } => {
                let report = tcp_streams(
                    from,
                    to,
                    StreamRequest {
                        address,
                        streams,
                        duration,
                    },
                )?;
                Ok(Sample {
                    value: report.bits_per_second(),
                    cpu_per_gigabit: Some(report.cpu_per_gigabit()),
                })
            }
            Self::Udp { payload_len } => {
                let request = BlastRequest {
                    address,
                    payload_len,
                    duration,
                };
                let report = udp_blast(from, to, request)?;
                Ok(Sample {
                    value: report.delivered_per_second(),
                    cpu_per_gigabit: None,
                })
            }
            Self::PingPong => {
                let echo = udp_echo(to, address)?;
                let request = PingPongRequest {
                    destination: echo.address(),
                    payload_len: 64,
                    // A round trip takes about 100 us.
                    count: (duration.as_secs_f64() * 5e3) as usize + 1,
                    timeout: Duration::from_millis(500),
                };
                let report = udp_ping_pong(from, request)?;
                let median = report.percentile(0.5).ok_or_else(|| {
                    TestbedError::Request(format!("none of {} datagrams was answered", report.sent))
                })?;
                Ok(Sample {
                    value: median.as_secs_f64(),
                    cpu_per_gigabit: None,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_be_parsed() {
        for (name, workload) in ALL {
            assert_eq!(parse(name), Ok(workload));
            assert_eq!(workload.name(), name);
        }
        assert!(parse("tcp").is_err());
    }
}
