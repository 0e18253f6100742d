use super::*;
use crate::wire::MacAddr;
use crate::wire::probe::Seen;
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
        answers,
        direct: false,
    }
}

fn ledger() -> Ledger {
    Ledger::new(77, MTU, INTERVAL)
}

fn heard(number: u8, message: Message, at: Instant) -> Heard {
    Heard {
        source: [192, 0, 2, number].into(),
        mac: mac(number),
        message,
        at,
    }
}

/// What a peer that has got all requests answers.
fn reply(ask: &Ask) -> Message {
    Message {
        kind: ask.message.kind.reply().unwrap(),
        seen: Seen {
            session: ask.message.session,
            latest: ask.message.number,
            mask: u32::MAX,
        },
        ..ask.message
    }
}

/// Lets time pass until `end`, with a peer that says whether it answers; returns what was
/// asked and when.
fn run(
    ledger: &mut Ledger,
    from: Instant,
    end: Duration,
    mut answers: impl FnMut(&Ask, Duration) -> bool,
) -> Vec<(Ask, Duration)> {
    let mut asked = Vec::new();
    while let Some(now) = ledger.due().filter(|due| *due <= from + end) {
        let nonce = 1000 + asked.len() as u64;
        let Some(ask) = ledger.next(nonce, now, |_| true) else {
            continue;
        };
        asked.push((ask, now - from));
        if answers(&ask, now - from) {
            let at = now + Duration::from_millis(3);
            match ask.means {
                Means::InBand => {
                    let number = ask.target.public_ip.octets()[3];
                    let outcome = ledger.heard(&heard(number, reply(&ask), at), at);
                    assert_eq!(outcome, Outcome::Taken);
                }
                Means::Echo => {
                    let network = ask.target.subnet.network();
                    ledger.echoed(network, nonce, ask.message.length, at);
                }
            }
        }
    }
    asked
}

#[test]
fn a_peer_that_answers_is_known_within_seconds() {
    for answers in [true, false] {
        let (mut ledger, now) = (ledger(), Instant::now());
        assert!(ledger.set_peers(&[target(1, answers)], now));
        let asked = run(&mut ledger, now, Duration::from_secs(3), |_, _| true);
        let lengths: Vec<_> = asked.iter().map(|(ask, _)| ask.message.length).collect();
        assert_eq!(lengths, [SMALL, MTU, SMALL]);
        let health = ledger.health(target(1, answers).subnet).unwrap();
        assert_eq!(health.rtt, Some(Duration::from_millis(3)));
        assert_eq!(health.path_mtu, Some(MTU));
        assert_eq!(health.loss.map(|loss| loss.percent), Some(0));
        let means = if answers { Means::InBand } else { Means::Echo };
        assert_eq!(health.means, means);
        assert!(!health.is_silent());
    }
}

#[test]
fn the_time_that_the_peer_kept_a_request_is_no_part_of_the_round_trip() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    let mut round_trip = |held: u32| {
        let due = ledger.due().unwrap();
        let ask = ledger.next(5, due, |_| true).unwrap();
        let at = due + Duration::from_millis(10);
        let message = Message {
            held,
            ..reply(&ask)
        };
        ledger.heard(&heard(1, message, at), at);
        ledger.health(target(1, true).subnet).unwrap().rtt.unwrap()
    };
    assert_eq!(round_trip(9_000), Duration::from_millis(1));
    // A length probe is next; then one that claims more than is possible.
    round_trip(0);
    assert_eq!(round_trip(11_000), Duration::from_millis(10));
}

#[test]
fn wrong_answers_are_strays_and_right_ones_count_once() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true), target(2, true), target(3, false)], now);
    let at = now + SOON;
    let ask = ledger.next(5, at, |_| true).unwrap();
    let good = reply(&ask);
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
        assert_eq!(ledger.heard(&heard(1, message, at), at), Outcome::Stray);
    }
    let mut other_mac = heard(1, good, at);
    other_mac.mac = mac(9);
    for stray in [
        heard(2, good, at),
        heard(3, good, at),
        heard(9, good, at),
        other_mac,
    ] {
        assert_eq!(ledger.heard(&stray, at), Outcome::Stray, "{stray:?}");
    }
    assert_eq!(ledger.health(target(1, true).subnet).unwrap().rtt, None);
    assert_eq!(ledger.heard(&heard(1, good, at), at), Outcome::Taken);
    assert_eq!(ledger.heard(&heard(1, good, at), at), Outcome::Stray);
}

#[test]
fn requests_are_answered_in_kind_and_tell_what_arrived() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true), target(2, false)], now);
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
    let Outcome::Answer(to, answer) = ledger.heard(&heard(1, first, now), later) else {
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
    assert_eq!(ledger.heard(&heard(1, first, now), now), Outcome::Replay);
    let size = request(Kind::SizeRequest, 1);
    let outcome = ledger.heard(&heard(1, size, now), now);
    assert!(
        matches!(outcome, Outcome::Answer(_, answer) if answer.kind == Kind::SizeReply && answer.length == 200)
    );
    // Whose lease promises nothing is not answered either: flannel has taken it over.
    assert_eq!(ledger.heard(&heard(2, first, now), now), Outcome::Stray);
    // Our own next request tells the peer what has arrived.
    let ask = ledger.next(5, now + SOON, |_| true).unwrap();
    assert_eq!(ask.message.seen, expected.seen);
}

#[test]
fn silence_is_noticed_and_asked_about_at_the_usual_pace() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    let asked = run(&mut ledger, now, Duration::from_secs(21), |_, _| false);
    assert_eq!(asked.len(), 5, "{asked:?}");
    assert!(asked.iter().all(|(ask, _)| ask.message.length == SMALL));
    let health = ledger.health(subnet).unwrap();
    assert!(health.is_silent());
    assert_eq!(health.loss.unwrap().percent, 100);
    run(&mut ledger, now, Duration::from_secs(200), |_, _| true);
    let health = ledger.health(subnet).unwrap();
    assert!(!health.is_silent());
    assert_eq!(health.loss.unwrap().percent, 0);
}

#[test]
fn what_was_lost_before_a_peer_was_there_is_no_loss() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    let later = Duration::from_secs(3);
    run(&mut ledger, now, INTERVAL * 3, |_, at| at > later);
    let loss = ledger.health(target(1, true).subnet).unwrap().loss;
    assert_eq!(loss.unwrap().percent, 0);
}

#[test]
fn a_path_that_narrows_is_found_while_small_probes_pass() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    run(&mut ledger, now, Duration::from_secs(10), |_, _| true);
    let minutes = |count: u64| Duration::from_secs(60 * count);
    // Everything is lost for a while: that says nothing about lengths.
    run(&mut ledger, now, minutes(2), |_, _| false);
    assert_eq!(ledger.health(subnet).unwrap().path_mtu, Some(MTU));
    let asked = run(&mut ledger, now, minutes(5), |ask, _| {
        ask.message.length <= 1300
    });
    let health = ledger.health(subnet).unwrap();
    assert!((1292..=1300).contains(&health.path_mtu.unwrap()));
    assert_eq!(
        health.loss.unwrap().percent,
        0,
        "lengths that do not fit are no loss"
    );
    let (_, begin) = *asked
        .iter()
        .find(|(ask, _)| ask.message.length > 1300)
        .unwrap();
    let last = asked
        .iter()
        .rfind(|(ask, _)| ask.message.length > 1300)
        .unwrap();
    assert!(last.1 - begin < minutes(1), "{last:?}");
    // Another MTU: what was found is not for it.
    ledger.set_mtu(1400);
    assert_eq!(ledger.health(subnet).unwrap().path_mtu, None);
    let asked = run(&mut ledger, now, minutes(7), |_, _| true);
    assert!(asked.iter().all(|(ask, _)| ask.message.length <= 1400));
    assert_eq!(ledger.health(subnet).unwrap().path_mtu, Some(1400));
}

#[test]
fn what_the_kernel_refuses_is_halved_at_once() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    run(&mut ledger, now, SOON, |_, _| true);
    let at = ledger.due().unwrap();
    let ask = ledger.next(5, at, |_| true).unwrap();
    assert_eq!(ask.message.length, MTU);
    ledger.refused(&ask);
    let at = ledger.due().unwrap();
    let ask = ledger.next(6, at, |_| true).unwrap();
    assert_eq!(ask.message.length, SMALL + (MTU - SMALL) / 2);
}

#[test]
fn a_lease_that_loses_its_promise_is_asked_by_echo() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    run(&mut ledger, now, INTERVAL, |_, _| true);
    let later = now + INTERVAL;
    assert!(ledger.set_peers(&[target(1, false)], later));
    assert!(!ledger.set_peers(&[target(1, false)], later));
    let health = ledger.health(target(1, false).subnet).unwrap();
    assert_eq!((health.means, health.path_mtu), (Means::Echo, None));
    assert!(health.rtt.is_some());
    let asked = run(&mut ledger, later, INTERVAL, |_, _| true);
    assert!(
        asked
            .iter()
            .all(|(ask, _)| ask.target.means() == Means::Echo)
    );
    // And who is reached without the tunnel, although it promises.
    let direct = Target {
        direct: true,
        ..target(1, true)
    };
    assert_eq!(direct.means(), Means::Echo);
}

#[test]
fn who_may_not_be_asked_is_not_counted_as_lost() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    for _ in 0..10 {
        let due = ledger.due().unwrap();
        assert_eq!(ledger.next(5, due, |_| false), None);
    }
    let health = ledger.health(target(1, true).subnet).unwrap();
    assert_eq!((health.loss, health.is_silent()), (None, false));
}

#[test]
fn a_peer_whose_answers_come_from_elsewhere_is_asked_by_echo_after_a_while() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    let only_echo = |ask: &Ask, _| ask.means == Means::Echo;
    let asked = run(&mut ledger, now, Duration::from_secs(600), only_echo);
    let health = ledger.health(subnet).unwrap();
    assert_eq!((health.means, health.is_silent()), (Means::Echo, false));
    assert_eq!(health.loss.unwrap().percent, 0, "tries are no losses");
    assert_eq!(health.path_mtu, Some(MTU));
    let tries = asked.iter().filter(|(ask, _)| ask.means == Means::InBand);
    assert!((8..=12).contains(&tries.count()));
    // Once they come, it is asked as others.
    run(&mut ledger, now, Duration::from_secs(720), |_, _| true);
    assert_eq!(ledger.health(subnet).unwrap().means, Means::InBand);
}

#[test]
fn a_peer_that_is_heard_is_asked_in_the_tunnel_again() {
    let (mut ledger, now) = (ledger(), Instant::now());
    ledger.set_peers(&[target(1, true)], now);
    let subnet = target(1, true).subnet;
    let only_echo = |ask: &Ask, _| ask.means == Means::Echo;
    run(&mut ledger, now, Duration::from_secs(60), only_echo);
    assert_eq!(ledger.health(subnet).unwrap().means, Means::Echo);
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
    ledger.heard(&heard(1, request, later), later);
    assert_eq!(ledger.health(subnet).unwrap().means, Means::InBand);
    // Nothing answers any more: no means is given up for the other.
    run(&mut ledger, now, Duration::from_secs(300), |_, _| false);
    let health = ledger.health(subnet).unwrap();
    assert_eq!((health.means, health.is_silent()), (Means::InBand, true));
    assert_eq!(health.loss.unwrap().percent, 100);
}

#[test]
fn new_peers_come_first() {
    let (mut ledger, now) = (ledger(), Instant::now());
    let old: Vec<_> = (1..=50).map(|number| target(number, true)).collect();
    ledger.set_peers(&old, now);
    run(&mut ledger, now, Duration::from_secs(1), |_, _| true);
    let late = now + Duration::from_secs(100);
    let all: Vec<_> = (1..=51).map(|number| target(number, true)).collect();
    ledger.set_peers(&all, late);
    let ask = ledger.next(5, late + SOON, |_| true).unwrap();
    assert_eq!(ask.target, target(51, true));
}

proptest! {
    /// Whatever comes and goes, no peer is asked twice in a second.
    #[test]
    fn no_churn_asks_a_peer_more_than_once_a_second(
        steps in proptest::collection::vec((0u64..900, 0u8..16, any::<bool>(), any::<bool>()), 1..150),
    ) {
        let (mut ledger, start) = (ledger(), Instant::now());
        let mut now = start;
        let mut last: HashMap<Ipv4Addr, Instant> = HashMap::new();
        for (pause, present, answers, replies) in steps {
            now += Duration::from_millis(pause);
            let targets: Vec<_> = (0..4)
                .filter(|bit| present >> bit & 1 == 1)
                .map(|bit| target(bit + 1, answers))
                .collect();
            ledger.set_peers(&targets, now);
            while let Some(due) = ledger.due().filter(|due| *due <= now) {
                let Some(ask) = ledger.next(due.elapsed().as_nanos() as u64, now, |_| true) else {
                    break;
                };
                let before = last.insert(ask.target.public_ip, now);
                prop_assert!(before.is_none_or(|before| now - before >= LEAST_PAUSE));
                prop_assert!(targets.contains(&ask.target));
                if replies && answers {
                    let number = ask.target.public_ip.octets()[3];
                    ledger.heard(&heard(number, reply(&ask), now), now);
                }
            }
            prop_assert_eq!(ledger.fresh.len() + ledger.known.len(), ledger.peers.len());
            prop_assert_eq!(ledger.by_address.len(), ledger.peers.len());
        }
    }
}
