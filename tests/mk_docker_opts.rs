//! `mk-docker-opts.sh` as a script, beside the program as it lies installed: every row of what
//! flannel's own writes, byte for byte.

use std::path::Path;
use std::process::{Command, Output};

const SAMPLE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\n\
                      FLANNEL_IPMASQ=false\n";
const SEED: &str = "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.28.1/24\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

const BIP: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
const MASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU: &str = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";
const ALL: &str = " --bip=10.1.74.1/24 --ip-masq=true --mtu=1472";

/// A folder as the usual deployment has it: the program under flannel's name, and the script.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_uvxlan"));
    std::os::unix::fs::symlink(program, folder.path().join("flanneld")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/mk-docker-opts.sh");
    std::fs::copy(script, folder.path().join("mk-docker-opts.sh")).unwrap();
    folder
}

fn script(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(folder.join("mk-docker-opts.sh"))
        .args(arguments)
        .env_remove("UVXLAN_BIN")
        .env_remove("DOCKER_OPTS")
        .current_dir(folder)
        .output()
        .unwrap()
}

fn written(input: &str, arguments: &[&str]) -> String {
    let folder = installed();
    std::fs::write(folder.path().join("in.env"), input).unwrap();
    let mut all = vec!["-f", "./in.env", "-d", "out.env"];
    all.extend(arguments);
    let output = script(folder.path(), &all);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    std::fs::read_to_string(folder.path().join("out.env")).unwrap()
}

#[test]
fn every_combination_of_options() {
    let combined = |name: &str, options: &str| format!("{name}=\"{options}\"\n");
    let docker = combined("DOCKER_OPTS", ALL);
    let single = format!("{BIP}{MASQ}{MTU}");
    let without = " --bip=10.1.74.1/24 --mtu=1472";
    let rows: [(&[&str], String); 8] = [
        (&[], format!("{single}{docker}")),
        (&["-i", "-c"], format!("{single}{docker}")),
        (&["-ic"], format!("{single}{docker}")),
        (&["-i"], single.clone()),
        (&["-c"], docker.clone()),
        (
            &["-k", "CUSTOM_KEY"],
            format!("{single}{}", combined("CUSTOM_KEY", ALL)),
        ),
        (
            &["-m"],
            format!("{BIP}{MTU}{}", combined("DOCKER_OPTS", without)),
        ),
        (&["-m", "-c"], combined("DOCKER_OPTS", without)),
    ];
    for (arguments, expected) in rows {
        assert_eq!(written(SAMPLE, arguments), expected, "{arguments:?}");
    }
}

#[test]
fn the_usual_deployment_overwrites_the_subnet_file() {
    let folder = installed();
    let file = folder.path().join("subnet.env");
    std::fs::write(&file, SEED).unwrap();
    let file = file.to_str().unwrap();
    let arguments = ["-k", "DOCKER_NETWORK_OPTIONS", "-f", file, "-d", file];
    assert!(script(folder.path(), &arguments).status.success());
    let options = " --bip=172.20.28.1/24 --ip-masq=false --mtu=1450";
    let lines = "DOCKER_OPT_BIP=\"--bip=172.20.28.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
                 DOCKER_OPT_MTU=\"--mtu=1450\"\n";
    let expected = format!("{lines}DOCKER_NETWORK_OPTIONS=\"{options}\"\n");
    assert_eq!(std::fs::read_to_string(file).unwrap(), expected);
    // Its own output is its input now, and the options double, as with flannel's.
    assert!(script(folder.path(), &arguments).status.success());
    let doubled = format!("{lines}DOCKER_NETWORK_OPTIONS=\"{options} {options}\"\n");
    assert_eq!(std::fs::read_to_string(file).unwrap(), doubled);
}

#[test]
fn what_is_missing_or_wrong() {
    let folder = installed();
    let arguments = ["-f", "./nothing.env", "-d", "out.env"];
    assert!(script(folder.path(), &arguments).status.success());
    let out = folder.path().join("out.env");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "DOCKER_OPTS=\"\"\n");

    std::fs::remove_file(&out).unwrap();
    std::fs::write(folder.path().join("bad.env"), "FLANNEL_IPMASQ=maybe\n").unwrap();
    let output = script(folder.path(), &["-f", "./bad.env", "-d", "out.env"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("Invalid value of FLANNEL_IPMASQ: maybe"),
        "{text}"
    );
    assert!(!out.exists(), "nothing is written then");

    for wrong in [&["-h"][..], &["-x"], &["-?"]] {
        let output = script(folder.path(), wrong);
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("-k COMBINED-KEY"), "{wrong:?}: {text}");
    }
}

#[test]
fn without_a_program_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/mk-docker-opts.sh");
    std::fs::copy(script, folder.path().join("mk-docker-opts.sh")).unwrap();
    let output = Command::new(folder.path().join("mk-docker-opts.sh"))
        .env_remove("UVXLAN_BIN")
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    if Path::new("/usr/bin/uvxlan").exists() {
        println!("SKIPPED: uvxlan is installed here");
        return;
    }
    assert_eq!(output.status.code(), Some(127));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("set UVXLAN_BIN"), "{text}");
}
