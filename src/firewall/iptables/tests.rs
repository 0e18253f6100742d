use super::*;

fn prefixes() -> Prefixes {
    Prefixes {
        network: "172.20.0.0/16".parse().unwrap(),
        subnet: "172.20.28.0/24".parse().unwrap(),
    }
}

const ALL: Wanted = Wanted {
    masquerade: true,
    forward: true,
    random_ports: true,
};
const NONE: Wanted = Wanted {
    masquerade: false,
    forward: false,
    random_ports: true,
};

const NAT: &str = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.20.28.0/24 -d 172.20.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.20.0.0/16 -d 172.20.28.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 172.20.0.0/16 -d 172.20.28.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.20.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.20.0.0/16 -d 172.20.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"#;
const FILTER: &str = r#"*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 172.20.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 172.20.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

fn lines_without(text: &str, left_out: &str) -> String {
    let kept = text.lines().filter(|line| *line != left_out);
    kept.map(|line| format!("{line}\n")).collect()
}

#[test]
fn rules_are_flannels() {
    for (table, expected) in [(Table::Nat, NAT), (Table::Filter, FILTER)] {
        let text = transaction(table, prefixes(), ALL, &[], "").unwrap();
        assert_eq!(text, expected);
        assert!(is_complete(table, prefixes(), ALL, expected));
    }
}

#[test]
fn a_second_time_the_jump_is_not_doubled() {
    let text = transaction(Table::Nat, prefixes(), ALL, &[], NAT).unwrap();
    let jump = "POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
    assert_eq!(text.matches(&format!("-D {jump}\n")).count(), 1);
    assert_eq!(text.matches(&format!("-A {jump}\n")).count(), 1);
}

#[test]
fn a_missing_moved_or_doubled_rule_is_noticed() {
    for line in NAT.lines().filter(|line| line.starts_with("-A")) {
        assert!(
            !is_complete(Table::Nat, prefixes(), ALL, &lines_without(NAT, line)),
            "{line}"
        );
        let doubled = NAT.replace(line, &format!("{line}\n{line}"));
        assert!(
            !is_complete(Table::Nat, prefixes(), ALL, &doubled),
            "{line}"
        );
    }
    let mut lines: Vec<_> = NAT.lines().collect();
    lines.swap(4, 5);
    assert!(!is_complete(Table::Nat, prefixes(), ALL, &lines.join("\n")));
}

#[test]
fn leftovers_of_v0_11_go_and_other_rules_stay() {
    let present = "*nat\n:POSTROUTING ACCEPT [0:0]\n\
        -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
        -A POSTROUTING -s 172.20.0.0/16 -d 172.20.0.0/16 -j RETURN\n\
        -A POSTROUTING -s 172.20.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
        -A POSTROUTING ! -s 10.9.0.0/16 -d 10.9.3.0/24 -j RETURN\n\
        -A POSTROUTING ! -s 10.8.0.0/16 -d 10.8.0.0/16 -j MASQUERADE\nCOMMIT\n";
    let former = Prefixes {
        network: "10.9.0.0/16".parse().unwrap(),
        subnet: "10.9.3.0/24".parse().unwrap(),
    };
    let text = transaction(Table::Nat, prefixes(), ALL, &[former], present).unwrap();
    let deleted: Vec<_> = text.lines().filter(|line| line.starts_with("-D")).collect();
    assert_eq!(
        deleted,
        [
            "-D POSTROUTING -s 172.20.0.0/16 -d 172.20.0.0/16 -j RETURN",
            "-D POSTROUTING -s 172.20.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
            "-D POSTROUTING ! -s 10.9.0.0/16 -d 10.9.3.0/24 -j RETURN",
        ]
    );
}

#[test]
fn leftovers_with_comments_go_where_they_are_ours() {
    let masq = "-m comment --comment \"flanneld masq\"";
    let ours = [
        format!("POSTROUTING -s 172.20.0.0/16 -d 172.20.0.0/16 {masq} -j RETURN"),
        format!(
            "POSTROUTING -s 172.20.0.0/16 ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully"
        ),
        format!("POSTROUTING ! -s 172.20.0.0/16 -d 172.20.9.0/24 {masq} -j RETURN"),
        // Without a comment, and for any subnet.
        "POSTROUTING ! -s 172.20.0.0/16 -d 172.20.7.0/24 -j RETURN".to_owned(),
    ];
    let others = [
        // Another flannel's on this host, and a rule that only looks like one.
        format!("POSTROUTING -s 10.7.0.0/16 -d 10.7.0.0/16 {masq} -j RETURN"),
        "POSTROUTING ! -s 172.20.0.0/16 -d 10.7.0.0/24 -j RETURN".to_owned(),
        "POSTROUTING -s 172.20.3.0/24 -j ACCEPT".to_owned(),
        "POSTROUTING2 -s 172.20.0.0/16 -d 172.20.0.0/16 -j RETURN".to_owned(),
    ];
    let present: String = ours
        .iter()
        .chain(&others)
        .map(|rule| format!("-A {rule}\n"))
        .collect();
    let text = transaction(Table::Nat, prefixes(), ALL, &[], &present).unwrap();
    for rule in &ours {
        assert!(text.contains(&format!("-D {rule}\n")), "{rule}: {text}");
    }
    for rule in &others {
        assert!(!text.contains(rule), "{rule}: {text}");
    }
}

#[test]
fn our_rules_return_to_their_positions() {
    let jump = "FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD";
    let own = "FLANNEL-FWD -s 172.20.0.0/16 -j ACCEPT";
    let before = format!(
        ":FORWARD DROP [0:0]\n:FLANNEL-FWD - [0:0]\n-A FORWARD -i a -j ACCEPT\n-A {jump}\n\
         -A FORWARD -i b -j ACCEPT\n-A FORWARD -s 172.20.0.0/16 -j ACCEPT\n-A {own}\n"
    );
    // Ours is at the end now, and a rule of somebody else is gone.
    let present = format!(
        ":FORWARD DROP [0:0]\n:FLANNEL-FWD - [0:0]\n-A FORWARD -i a -j ACCEPT\n-A {jump}\n{}",
        FILTER
            .lines()
            .skip(3)
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    );
    let text = restoration(Table::Filter, prefixes(), &[], &before, &present).unwrap();
    let rest = &jump["FORWARD ".len()..];
    assert_eq!(
        text,
        format!(
            "*filter\n:FLANNEL-FWD - [0:0]\n-D {jump}\n-I FORWARD 2 {rest}\n\
             -I FORWARD 3 -s 172.20.0.0/16 -j ACCEPT\n-A {own}\nCOMMIT\n"
        )
    );
    let again = restoration(Table::Filter, prefixes(), &[], &before, &before);
    assert_eq!(again, None);
    // Where there was nothing, nothing stays.
    let nothing = ":FORWARD DROP [0:0]\n-A FORWARD -i a -j ACCEPT\n";
    let text = restoration(Table::Filter, prefixes(), &[], nothing, &present).unwrap();
    assert_eq!(
        text,
        format!("*filter\n:FLANNEL-FWD - [0:0]\n-D {jump}\n-X FLANNEL-FWD\nCOMMIT\n")
    );
}

#[test]
fn what_is_not_wanted_is_removed_with_its_chain() {
    assert_eq!(
        transaction(Table::Nat, prefixes(), NONE, &[], "*nat\nCOMMIT\n"),
        None
    );
    let text = transaction(Table::Filter, prefixes(), NONE, &[], FILTER).unwrap();
    assert_eq!(
        text,
        "*filter\n:FLANNEL-FWD - [0:0]\n\
         -D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -X FLANNEL-FWD\nCOMMIT\n"
    );
    assert!(!is_complete(Table::Filter, prefixes(), NONE, FILTER));
    assert!(is_complete(
        Table::Filter,
        prefixes(),
        NONE,
        ":FLANNEL-FWD - [0:0]\n"
    ));
}

#[test]
fn versions_of_every_age() {
    assert_eq!(version("iptables v1.8.9 (nf_tables)\n"), Some((1, 8, 9)));
    assert_eq!(version("iptables v1.4.21"), Some((1, 4, 21)));
    assert_eq!(version("iptables v1.8"), Some((1, 8, 0)));
    assert_eq!(version("what?"), None);
}
