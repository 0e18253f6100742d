use super::super::path::SMALL;
use super::*;
use crate::wire::MacAddr;
use crate::wire::probe::{Kind, Message, Seen};
use proptest::prelude::*;

const MTU: u16 = 1450;
const INTERVAL: Duration = Duration::from_secs(5);

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

fn target(number: u8, answers: bool) -> Target {
    Target {
        subnet: Ipv4Net::new_assert([10, 5, number, 0].into(), 24),
        public_ip: [192, 0, 2, number].into(),
        mac: mac(number),
        replies: answers,
        direct: false,
    }
}

fn schedule() -> Schedule {
    Schedule::new(77, MTU, INTERVAL)
}

fn heard(number: u8, message: Message, at: Instant) -> ReceivedProbe {
    ReceivedProbe {
        source: [192, 0, 2, number].into(),
        mac: mac(number),
        message,
        at,
    }
}

/// The reply of a peer that has received all requests.
fn reply(probe: &Probe) -> Message {
    Message {
        kind: probe.message.kind.reply().unwrap(),
        seen: Seen {
            session: probe.message.session,
            latest: probe.message.number,
            mask: u32::MAX,
        },
        ..probe.message
    }
}

/// Lets time pass until `end`, with peers that reply where `answers` says so. Returns the probes,
/// and when they were sent.
fn run(
    schedule: &mut Schedule,
    from: Instant,
    end: Duration,
    mut answers: impl FnMut(&Probe, Duration) -> bool,
) -> Vec<(Probe, Duration)> {
    let mut sent = Vec::new();
    while let Some(now) = schedule.due().filter(|due| *due <= from + end) {
        let nonce = 1000 + sent.len() as u64;
        let Some(probe) = schedule.next(nonce, now, |_| true) else {
            continue;
        };
        sent.push((probe, now - from));
        if answers(&probe, now - from) {
            let at = now + Duration::from_millis(3);
            match probe.method {
                Method::InBand => {
                    let number = probe.target.public_ip.octets()[3];
                    let outcome = schedule.receive(&heard(number, reply(&probe), at), at);
                    assert_eq!(outcome, Disposition::Accepted);
                }
                Method::Echo => {
                    let network = probe.target.subnet.network();
                    schedule.receive_echo(network, nonce, probe.message.length, at);
                }
            }
        }
    }
    sent
}

#[test]
fn a_peer_that_replies_is_known_within_seconds() {
    for answers in [true, false] {
        let (mut schedule, now) = (schedule(), Instant::now());
        assert!(schedule.set_peers(&[target(1, answers)], now));
        let sent = run(&mut schedule, now, Duration::from_secs(3), |_, _| true);
        let lengths: Vec<_> = sent.iter().map(|(probe, _)| probe.message.length).collect();
        assert_eq!(lengths, [SMALL, MTU, SMALL]);
        let health = schedule.health(target(1, answers).subnet).unwrap();
        assert_eq!(health.rtt, Some(Duration::from_millis(3)));
        assert_eq!(health.path_mtu, Some(MTU));
        assert_eq!(health.loss.map(|loss| loss.percent), Some(0));
        let method = if answers {
            Method::InBand
        } else {
            Method::Echo
        };
        assert_eq!(health.method, method);
        assert!(!health.is_silent());
    }
}

#[test]
fn the_time_that_the_peer_held_a_request_is_no_part_of_the_round_trip() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    let mut round_trip = |held: u32| {
        let due = schedule.due().unwrap();
        let probe = schedule.next(5, due, |_| true).unwrap();
        let at = due + Duration::from_millis(10);
        let message = Message {
            held,
            ..reply(&probe)
        };
        schedule.receive(&heard(1, message, at), at);
        schedule
            .health(target(1, true).subnet)
            .unwrap()
            .rtt
            .unwrap()
    };
    assert_eq!(round_trip(9_000), Duration::from_millis(1));
    // A length probe is next; then a reply that claims more than is possible.
    round_trip(0);
    assert_eq!(round_trip(11_000), Duration::from_millis(10));
}

#[test]
fn wrong_replies_are_strays_and_right_ones_count_once() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true), target(2, true), target(3, false)], now);
    let at = now + FIRST_DELAY;
    let probe = schedule.next(5, at, |_| true).unwrap();
    let good = reply(&probe);
    let wrong = [
        Message { nonce: 6, ..good },
        Message { number: 2, ..good },
        Message { length: 83, ..good },
        Message {
            session: 78,
            ..good
        },
        Message {
            kind: Kind::SizeReply,
            ..good
        },
    ];
    for message in wrong {
        assert_eq!(
            schedule.receive(&heard(1, message, at), at),
            Disposition::Stray
        );
    }
    let mut other_mac = heard(1, good, at);
    other_mac.mac = mac(9);
    for stray in [
        heard(2, good, at),
        heard(3, good, at),
        heard(9, good, at),
        other_mac,
    ] {
        assert_eq!(
            schedule.receive(&stray, at),
            Disposition::Stray,
            "{stray:?}"
        );
    }
    assert_eq!(schedule.health(target(1, true).subnet).unwrap().rtt, None);
    assert_eq!(
        schedule.receive(&heard(1, good, at), at),
        Disposition::Accepted
    );
    assert_eq!(
        schedule.receive(&heard(1, good, at), at),
        Disposition::Stray
    );
}

#[test]
fn requests_get_a_reply_of_their_kind_that_reports_what_arrived() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true), target(2, false)], now);
    let request = |kind, number| Message {
        kind,
        length: 200,
        nonce: 42,
        session: 9,
        number,
        seen: Seen::default(),
        held: 0,
    };
    let first = request(Kind::Request, 1);
    let later = now + Duration::from_millis(2);
    let Disposition::Reply(to, answer) = schedule.receive(&heard(1, first, now), later) else {
        panic!();
    };
    assert_eq!(to, target(1, true));
    let expected = Message {
        kind: Kind::Reply,
        seen: Seen {
            session: 9,
            latest: 1,
            mask: 1,
        },
        held: 2000,
        ..first
    };
    assert_eq!(answer, expected);
    assert_eq!(
        schedule.receive(&heard(1, first, now), now),
        Disposition::Replay
    );
    let size = request(Kind::SizeRequest, 1);
    let outcome = schedule.receive(&heard(1, size, now), now);
    assert!(
        matches!(outcome, Disposition::Reply(_, answer) if answer.kind == Kind::SizeReply && answer.length == 200)
    );
    // A peer whose lease promises nothing gets no reply: flannel has taken it over.
    assert_eq!(
        schedule.receive(&heard(2, first, now), now),
        Disposition::Stray
    );
    // Our own next request reports to the peer what has arrived.
    let probe = schedule.next(5, now + FIRST_DELAY, |_| true).unwrap();
    assert_eq!(probe.message.seen, expected.seen);
}

#[test]
fn a_silent_peer_is_noticed_and_probed_at_the_usual_pace() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    let sent = run(&mut schedule, now, Duration::from_secs(21), |_, _| false);
    assert_eq!(sent.len(), 5, "{sent:?}");
    assert!(sent.iter().all(|(probe, _)| probe.message.length == SMALL));
    let health = schedule.health(subnet).unwrap();
    assert!(health.is_silent());
    assert_eq!(health.loss.unwrap().percent, 100);
    run(&mut schedule, now, Duration::from_secs(200), |_, _| true);
    let health = schedule.health(subnet).unwrap();
    assert!(!health.is_silent());
    assert_eq!(health.loss.unwrap().percent, 0);
}

#[test]
fn probes_lost_before_a_peer_was_up_are_no_loss() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    let later = Duration::from_secs(3);
    run(&mut schedule, now, INTERVAL * 3, |_, at| at > later);
    let loss = schedule.health(target(1, true).subnet).unwrap().loss;
    assert_eq!(loss.unwrap().percent, 0);
}

#[test]
fn a_path_that_narrows_is_found_while_small_probes_pass() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    run(&mut schedule, now, Duration::from_secs(10), |_, _| true);
    let minutes = |count: u64| Duration::from_secs(60 * count);
    // Everything is lost for a while: that says nothing about lengths.
    run(&mut schedule, now, minutes(2), |_, _| false);
    assert_eq!(schedule.health(subnet).unwrap().path_mtu, Some(MTU));
    let sent = run(&mut schedule, now, minutes(5), |probe, _| {
        probe.message.length <= 1300
    });
    let health = schedule.health(subnet).unwrap();
    assert!((1292..=1300).contains(&health.path_mtu.unwrap()));
    assert_eq!(
        health.loss.unwrap().percent,
        0,
        "lengths that do not fit are no loss"
    );
    let (_, begin) = *sent
        .iter()
        .find(|(probe, _)| probe.message.length > 1300)
        .unwrap();
    let last = sent
        .iter()
        .rfind(|(probe, _)| probe.message.length > 1300)
        .unwrap();
    assert!(last.1 - begin < minutes(1), "{last:?}");
    // What was found was for the old MTU.
    schedule.set_mtu(1400);
    assert_eq!(schedule.health(subnet).unwrap().path_mtu, None);
    let sent = run(&mut schedule, now, minutes(7), |_, _| true);
    assert!(sent.iter().all(|(probe, _)| probe.message.length <= 1400));
    assert_eq!(schedule.health(subnet).unwrap().path_mtu, Some(1400));
}

#[test]
fn a_length_that_the_kernel_refuses_is_halved_at_once() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    run(&mut schedule, now, FIRST_DELAY, |_, _| true);
    let at = schedule.due().unwrap();
    let probe = schedule.next(5, at, |_| true).unwrap();
    assert_eq!(probe.message.length, MTU);
    schedule.too_long(&probe);
    let at = schedule.due().unwrap();
    let probe = schedule.next(6, at, |_| true).unwrap();
    assert_eq!(probe.message.length, SMALL + (MTU - SMALL) / 2);
}

#[test]
fn a_lease_that_loses_its_promise_is_probed_by_echo() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    run(&mut schedule, now, INTERVAL, |_, _| true);
    let later = now + INTERVAL;
    assert!(schedule.set_peers(&[target(1, false)], later));
    assert!(!schedule.set_peers(&[target(1, false)], later));
    let health = schedule.health(target(1, false).subnet).unwrap();
    assert_eq!((health.method, health.path_mtu), (Method::Echo, None));
    assert!(health.rtt.is_some());
    let sent = run(&mut schedule, later, INTERVAL, |_, _| true);
    assert!(
        sent.iter()
            .all(|(probe, _)| probe.target.method() == Method::Echo)
    );
    // So is a peer that is reached without the tunnel, although it promises replies.
    let direct = Target {
        direct: true,
        ..target(1, true)
    };
    assert_eq!(direct.method(), Method::Echo);
}

#[test]
fn a_skipped_probe_is_not_counted_as_lost() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    for _ in 0..10 {
        let due = schedule.due().unwrap();
        assert_eq!(schedule.next(5, due, |_| false), None);
    }
    let health = schedule.health(target(1, true).subnet).unwrap();
    assert_eq!((health.loss, health.is_silent()), (None, false));
}

#[test]
fn a_peer_whose_replies_come_from_elsewhere_is_probed_by_echo_after_a_while() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    let only_echo = |probe: &Probe, _| probe.method == Method::Echo;
    let sent = run(&mut schedule, now, Duration::from_secs(600), only_echo);
    let health = schedule.health(subnet).unwrap();
    assert_eq!((health.method, health.is_silent()), (Method::Echo, false));
    assert_eq!(health.loss.unwrap().percent, 0, "trials are no losses");
    assert_eq!(health.path_mtu, Some(MTU));
    let trials = sent
        .iter()
        .filter(|(probe, _)| probe.method == Method::InBand);
    assert!((8..=12).contains(&trials.count()));
    // Once they come, it is probed as others are.
    run(&mut schedule, now, Duration::from_secs(720), |_, _| true);
    assert_eq!(schedule.health(subnet).unwrap().method, Method::InBand);
}

#[test]
fn a_peer_that_is_heard_is_probed_in_the_tunnel_again() {
    let (mut schedule, now) = (schedule(), Instant::now());
    schedule.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    let only_echo = |probe: &Probe, _| probe.method == Method::Echo;
    run(&mut schedule, now, Duration::from_secs(60), only_echo);
    assert_eq!(schedule.health(subnet).unwrap().method, Method::Echo);
    let request = Message {
        kind: Kind::Request,
        length: SMALL,
        nonce: 1,
        session: 9,
        number: 1,
        seen: Seen::default(),
        held: 0,
    };
    let later = now + Duration::from_secs(61);
    schedule.receive(&heard(1, request, later), later);
    assert_eq!(schedule.health(subnet).unwrap().method, Method::InBand);
    // Nothing replies any more: neither method replaces the other.
    run(&mut schedule, now, Duration::from_secs(300), |_, _| false);
    let health = schedule.health(subnet).unwrap();
    assert_eq!((health.method, health.is_silent()), (Method::InBand, true));
    assert_eq!(health.loss.unwrap().percent, 100);
}

#[test]
fn new_peers_come_first() {
    let (mut schedule, now) = (schedule(), Instant::now());
    let old: Vec<_> = (1..=50).map(|number| target(number, true)).collect();
    schedule.set_peers(&old, now);
    run(&mut schedule, now, Duration::from_secs(1), |_, _| true);
    let late = now + Duration::from_secs(100);
    let all: Vec<_> = (1..=51).map(|number| target(number, true)).collect();
    schedule.set_peers(&all, late);
    let probe = schedule.next(5, late + FIRST_DELAY, |_| true).unwrap();
    assert_eq!(probe.target, target(51, true));
}

proptest! {
    /// Whatever changes, no peer is probed twice in a second.
    #[test]
    fn no_churn_probes_a_peer_more_than_once_a_second(
        steps in proptest::collection::vec((0u64..900, 0u8..16, any::<bool>(), any::<bool>()), 1..150),
    ) {
        let (mut schedule, start) = (schedule(), Instant::now());
        let mut now = start;
        let mut last: HashMap<Ipv4Addr, Instant> = HashMap::new();
        for (pause, present, answers, replies) in steps {
            now += Duration::from_millis(pause);
            let targets: Vec<_> = (0..4)
                .filter(|bit| present >> bit & 1 == 1)
                .map(|bit| target(bit + 1, answers))
                .collect();
            schedule.set_peers(&targets, now);
            while let Some(due) = schedule.due().filter(|due| *due <= now) {
                let Some(probe) = schedule.next(due.elapsed().as_nanos() as u64, now, |_| true) else {
                    break;
                };
                let before = last.insert(probe.target.public_ip, now);
                prop_assert!(before.is_none_or(|before| now - before >= MIN_INTERVAL));
                prop_assert!(targets.contains(&probe.target));
                if replies && answers {
                    let number = probe.target.public_ip.octets()[3];
                    schedule.receive(&heard(number, reply(&probe), now), now);
                }
            }
            prop_assert_eq!(schedule.fresh.len() + schedule.known.len(), schedule.peers.len());
            prop_assert_eq!(schedule.by_address.len(), schedule.peers.len());
        }
    }
}
