//! Rules are installed completely or not at all: a failure leaves the rules of before.

use std::time::Duration;

use super::bench::{Bench, HEALTH, Tool};
use super::leftovers::seed;

use crate::support::need;
use crate::support::nodes::{TIMEOUT, eventually, possible};

/// Refuses every transaction for one table.
fn refusing(table: &str) -> String {
    format!(
        "input=$(cat)\n\
         case \"$input\" in \"*{table}\"*) echo 'not today' >&2; exit 4 ;; esac\n\
         printf '%s\\n' \"$input\" | REAL \"$@\"\n"
    )
}

#[test]
fn a_refused_table_rolls_back_the_other() {
    need!(possible(&["iptables", "nft"]));
    for tool in Tool::IPTABLES {
        for table in ["filter", "nat"] {
            let bench = Bench::new(tool);
            seed(&bench);
            let before = [bench.saved(), bench.tables()];
            let now = || [bench.saved(), bench.tables()];
            bench.script("iptables-restore", tool, &refusing(table));
            let health = format!("--healthz-port={HEALTH}");
            let flags = ["--ip-masq", "--iptables-resync=1", &health, &tool.flag()];
            let node = bench.node(&flags);
            let log = node.log();
            assert!(
                log.contains("firewall_failed") && log.contains("not today"),
                "{tool:?}, {table}: {log}"
            );
            assert_eq!(now(), before, "{tool:?}, {table}");
            let not_yet = (503, "flanneld is not ready yet".into());
            assert_eq!(bench.readiness(), not_yet, "without masquerading");
            // It retries, and again leaves nothing.
            std::thread::sleep(Duration::from_secs(3));
            eventually("nothing is left between two retries", || now() == before);

            bench.script("iptables-restore", tool, "exec REAL \"$@\"\n");
            eventually("the rules are in place in the end", || bench.is_ready());
            let rules = bench.saved();
            assert!(
                rules.contains("FLANNEL-POSTRTG") && rules.contains("FLANNEL-FWD"),
                "{rules}"
            );
        }
    }
}

#[test]
fn a_failed_start_rolls_back_its_rules_and_forwarding() {
    need!(possible(&["iptables", "nft"]));
    for tool in Tool::ALL {
        for with_leftovers in [false, true] {
            let bench = Bench::new(tool);
            if with_leftovers {
                seed(&bench);
            }
            bench.shell("sysctl -qw net.ipv4.ip_forward=0");
            let before = [bench.saved(), bench.tables()];
            let folder = bench.folder.path().join("node");
            // A folder where the subnet file should be: the new file cannot be moved there.
            std::fs::create_dir_all(folder.join("subnet.env/full")).unwrap();
            let flags = ["--ip-masq", "--keep-device", &tool.flag()];
            let mut daemon = bench.daemon(&folder, &flags);
            let ended = daemon.ready(TIMEOUT).unwrap_err().to_string();
            assert!(ended.contains("exit status: 73"), "{ended}");
            let log = daemon.log();
            assert!(log.contains("rules are in place"), "it got this far: {log}");
            let after = [bench.saved(), bench.tables()];
            assert_eq!(after, before, "{tool:?}, {with_leftovers}");
            let forwards = bench.shell("sysctl -n net.ipv4.ip_forward");
            assert_eq!(forwards, "0\n");
            let links = bench.shell("ip -o link");
            assert!(!links.contains("flannel"), "{links}");
        }
    }
}
