//! Selection of a tool: one that works, as soon as it is installed.

use super::bench::{Bench, HEALTH, NETWORK, Tool, find, of_iptables, of_nftables};

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, PROGRAM, eventually, executable, possible};

#[test]
fn without_a_tool_it_continues_names_the_packages_and_uses_a_later_one() {
    need!(possible(&["iptables"]));
    let bench = Bench::without_tools();
    let health = format!("--healthz-port={HEALTH}");
    let node = bench.node(&["--ip-masq", "--iptables-resync=1", &health]);
    let log = node.log();
    for words in [
        "install the package iptables",
        "install the package nftables",
        "do not reach addresses outside",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let (missing, lease) = (log.find("firewall_missing"), log.find("Allocated lease"));
    assert!(missing < lease, "named before anything is changed: {log}");
    assert_eq!(bench.readiness().0, 503);
    for name in ["iptables", "iptables-save", "iptables-restore"] {
        bench.link(name, &find("xtables-nft-multi"));
    }
    eventually("rules are in place", || bench.is_ready());
    let subnet = node.env.unwrap().subnet;
    assert_eq!(bench.saved(), of_iptables(NETWORK, subnet, true));
}

#[test]
fn a_tool_without_kernel_support_is_not_used() {
    need!(possible(&["iptables", "nft"]));
    // Installed, with a version, but useless.
    let useless = "case \"$*\" in *--version*) exec REAL --version ;; esac\n\
                   echo \"can't initialize iptables table\" >&2; exit 3\n";
    let bench = Bench::new(Tool::IptablesNft);
    for name in ["iptables", "iptables-save", "iptables-restore"] {
        bench.script(name, Tool::IptablesNft, useless);
    }
    let mut node = bench.node(&["--ip-masq"]);
    let subnet = node.env.unwrap().subnet;
    assert_eq!(bench.tables(), of_nftables(NETWORK, subnet, true));
    node.stop_daemon();
    // With an explicit choice there is no fallback.
    node.flags.push("--firewall=iptables".into());
    bench.shell("nft delete table ip flannel-ipv4");
    node.start_daemon();
    assert_eq!(bench.tables(), "");
    let log = node.stop_daemon();
    assert!(log.contains("can't initialize iptables table"), "{log}");
}

/// iptables before 1.6.2: iptables-restore knows neither a lock nor `--wait`, MASQUERADE no
/// `--random-fully`.
#[test]
fn an_old_iptables_is_locked_by_us() {
    need!(possible(&["iptables", "flock"]));
    let bench = Bench::new(Tool::IptablesLegacy);
    let real_version = "case \"$*\" in *--version*) echo 'iptables v1.4.21'; exit ;; esac\n\
                        exec REAL \"$@\"\n";
    bench.script("iptables", Tool::IptablesLegacy, real_version);
    let locked = "case \"$*\" in *--wait*) echo 'unknown option --wait' >&2; exit 2 ;; esac\n\
                  ! flock -n \"$XTABLES_LOCKFILE\" true || { echo 'without the lock' >&2; exit 4; }\n\
                  # It would wait for itself.\n\
                  XTABLES_LOCKFILE=$XTABLES_LOCKFILE.real exec REAL \"$@\"\n";
    bench.script("iptables-restore", Tool::IptablesLegacy, locked);
    let node = bench.node(&["--ip-masq", "--firewall=iptables"]);
    let subnet = node.env.unwrap().subnet;
    let wanted = of_iptables(NETWORK, subnet, true).replace(" --random-fully", "");
    assert_eq!(bench.saved(), wanted, "{}", node.log());
}

#[test]
fn rules_can_be_printed_instead() {
    need!(possible(&["iptables"]));
    let bench = Bench::new(Tool::IptablesNft);
    let printed = bench.folder.path().join("printed");
    let wrapper = bench.folder.path().join("keeps-stdout");
    let text = format!("#!/bin/sh\nexec {PROGRAM} \"$@\" >{}\n", printed.display());
    executable(&wrapper, &text);
    let store = bench.folder.path().join("store");
    let flags = [
        format!("--store=dir:{}", store.display()),
        "--ip-masq".into(),
        "--firewall=print".into(),
    ];
    let node = NodeUnderTest::start_program(&wrapper, bench.host(), bench.folder.path(), &flags);
    assert_eq!(bench.saved(), "", "nothing is installed");
    bench.shell(&format!("iptables-restore --noflush {}", printed.display()));
    let subnet = node.env.unwrap().subnet;
    assert_eq!(bench.saved(), of_iptables(NETWORK, subnet, true));
}
