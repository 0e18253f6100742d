//! `systemd/mk-docker-opts.sh`, compared with the output of flannel's own script.
//!
//! Expected texts are those of flannel's `dist/mk-docker-opts_tests.sh`, and of its script
//! run under dash.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_uvxlan");

/// `sample_subnet.env` of flannel's tests.
const SAMPLE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n\
                      FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
/// The subnet file of a widely copied installation guide.
const GUIDE: &str = "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.28.1/24\n\
                     FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const GUIDE_OPTIONS: &str = "DOCKER_OPT_BIP=\"--bip=172.20.28.1/24\"\n\
     DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
     DOCKER_OPT_MTU=\"--mtu=1450\"\n\
     DOCKER_NETWORK_OPTIONS=\" --bip=172.20.28.1/24 --ip-masq=false --mtu=1450\"\n";

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/mk-docker-opts.sh")
}

/// A folder with an input file and the script's output file.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(input: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("subnet.env"), input).unwrap();
        Self { folder }
    }

    fn input(&self) -> PathBuf {
        self.folder.path().join("subnet.env")
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("docker.env")
    }

    fn run(&self, options: &str) -> Output {
        self.run_on(&self.input(), &self.output(), options)
    }

    fn run_on(&self, input: &Path, output: &Path, options: &str) -> Output {
        Command::new(script())
            .env_clear()
            .env("UVXLAN_BIN", PROGRAM)
            .env("PATH", "/usr/bin:/bin")
            .arg("-f")
            .arg(input)
            .arg("-d")
            .arg(output)
            .args(options.split_whitespace())
            .output()
            .unwrap()
    }

    /// The output file after a run that must succeed silently.
    fn written(&self, options: &str) -> String {
        quiet(&self.run(options));
        fs::read_to_string(self.output()).unwrap()
    }
}

fn quiet(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

const BIP: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
const IPMASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU: &str = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";

#[test]
fn each_option_gives_flannels_text() {
    let all = |name: &str| format!("{name}=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n");
    let unmasked = |name: &str| format!("{name}=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
    let default = all("DOCKER_OPTS");
    let table = [
        ("", format!("{BIP}{IPMASQ}{MTU}{default}")),
        ("-i -c", format!("{BIP}{IPMASQ}{MTU}{default}")),
        ("-ic", format!("{BIP}{IPMASQ}{MTU}{default}")),
        ("-i", format!("{BIP}{IPMASQ}{MTU}")),
        ("-c", default.clone()),
        (
            "-k CUSTOM_KEY",
            format!("{BIP}{IPMASQ}{MTU}{}", all("CUSTOM_KEY")),
        ),
        ("-kCUSTOM_KEY -c", all("CUSTOM_KEY")),
        ("-i -k CUSTOM_KEY", format!("{BIP}{IPMASQ}{MTU}")),
        ("-m", format!("{BIP}{MTU}{}", unmasked("DOCKER_OPTS"))),
        ("-m -c", unmasked("DOCKER_OPTS")),
        ("-m -i", format!("{BIP}{MTU}")),
        ("-cmk CUSTOM_KEY", unmasked("CUSTOM_KEY")),
    ];
    for (options, expected) in table {
        assert_eq!(Files::new(SAMPLE).written(options), expected, "{options:?}");
    }
}

#[test]
fn dockers_masquerading_is_the_opposite_of_flannels() {
    let masked = SAMPLE.replace("IPMASQ=false", "IPMASQ=true");
    assert_eq!(
        Files::new(&masked).written("-c"),
        "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n"
    );
    let ipv6_only = "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
                     FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
    assert_eq!(
        Files::new(ipv6_only).written(""),
        format!("{IPMASQ}{MTU}DOCKER_OPTS=\" --ip-masq=true --mtu=1472\"\n")
    );
}

#[test]
fn an_earlier_output_is_replaced_not_added_to() {
    let files = Files::new(SAMPLE);
    fs::write(files.output(), "STALE=1\n".repeat(100)).unwrap();
    assert_eq!(files.written("-i"), format!("{BIP}{IPMASQ}{MTU}"));
}

#[test]
fn without_a_subnet_file_the_options_are_empty() {
    let files = Files::new("");
    fs::remove_file(files.input()).unwrap();
    assert_eq!(files.written(""), "DOCKER_OPTS=\"\"\n");
    assert_eq!(files.written("-k NAME"), "NAME=\"\"\n");
    assert_eq!(files.written("-i"), "");
}

#[test]
fn failures_end_with_1_say_why_and_write_nothing() {
    let files = Files::new("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_IPMASQ=maybe\n");
    let failed = |output: &Output, words: &[&str]| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said:?}");
        }
        assert!(!files.output().exists(), "{words:?}");
    };
    failed(&files.run(""), &["Invalid value of FLANNEL_IPMASQ: maybe"]);
    // Usage, on stderr, for unknown options and on request.
    for options in ["-h", "-x", "-?", "-i -k"] {
        failed(&files.run(options), &["-f", "-d", "-i", "-c", "-m", "-k"]);
    }
    // With -m the value is not needed.
    quiet(&files.run("-m"));
    fs::remove_file(files.output()).unwrap();

    let folder = files.folder.path();
    let unreadable = files.run_on(folder, &files.output(), "");
    failed(&unreadable, &["cannot read", &folder.display().to_string()]);
    let nowhere = files.input().join("docker.env");
    let unwritable = files.run_on(&files.input(), &nowhere, "-m");
    failed(
        &unwritable,
        &["cannot write", &nowhere.display().to_string()],
    );
}

#[test]
fn nothing_in_the_subnet_file_is_executed() {
    let files = Files::new("");
    let trace = files.folder.path().join("trace");
    let trap = format!("FLANNEL_MTU=$(touch {0})\ntouch {0}\n", trace.display());
    fs::write(files.input(), trap).unwrap();
    files.run("");
    assert!(!trace.exists());
}

#[test]
fn the_program_is_found_beside_the_script_under_either_name() {
    for name in ["uvxlan", "flanneld"] {
        let files = Files::new(GUIDE);
        let script_here = files.folder.path().join("mk-docker-opts.sh");
        fs::copy(script(), &script_here).unwrap();
        symlink(PROGRAM, files.folder.path().join(name)).unwrap();
        let output = Command::new(&script_here)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .args(["-k", "DOCKER_NETWORK_OPTIONS", "-f"])
            .arg(files.input())
            .arg("-d")
            .arg(files.output())
            .output()
            .unwrap();
        quiet(&output);
        assert_eq!(
            fs::read_to_string(files.output()).unwrap(),
            GUIDE_OPTIONS,
            "{name}"
        );
    }
    let files = Files::new(GUIDE);
    let alone = files.folder.path().join("mk-docker-opts.sh");
    fs::copy(script(), &alone).unwrap();
    let output = Command::new(&alone)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .arg("-d")
        .arg(files.output())
        .output()
        .unwrap();
    if output.status.success() {
        crate::support::skipped("a uvxlan is installed on this machine's PATH");
        return;
    }
    assert_eq!(output.status.code(), Some(127));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("UVXLAN_BIN"),
        "{output:?}"
    );
}

/// The installation guide's command, with its paths: the subnet file is read by default, and
/// overwritten. In a mount namespace, so that this machine's `/run` stays unchanged.
#[test]
fn the_guides_command_line_overwrites_the_subnet_file_with_flannels_bytes() {
    let files = Files::new(GUIDE);
    let inside = "mount -t tmpfs none /run && mkdir /run/flannel && \
                  cp \"$INPUT\" /run/flannel/subnet.env || exit 99\n\
                  usual() { \"$SCRIPT\" -k DOCKER_NETWORK_OPTIONS -d /run/flannel/subnet.env; }\n\
                  usual && cp /run/flannel/subnet.env \"$FIRST\" || exit 1\n\
                  usual && cp /run/flannel/subnet.env \"$SECOND\" || exit 1\n\
                  \"$SCRIPT\" && cp /run/docker_opts.env \"$DEFAULT\"";
    let at = |name: &str| files.folder.path().join(name);
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", inside])
        .env("UVXLAN_BIN", PROGRAM)
        .env("SCRIPT", script())
        .env("INPUT", files.input())
        .env("FIRST", at("first"))
        .env("SECOND", at("second"))
        .env("DEFAULT", at("default"))
        .output();
    let output = match output {
        Ok(output)
            if output.status.code() == Some(1)
                && !at("first").exists()
                && unshare_refused(&output) =>
        {
            crate::support::skipped(format!("no mount namespace here: {output:?}"));
            return;
        }
        Ok(output) if output.status.code() == Some(99) => {
            crate::support::skipped(format!("/run cannot be mounted over: {output:?}"));
            return;
        }
        Err(error) => {
            crate::support::skipped(format!("no unshare program: {error}"));
            return;
        }
        Ok(output) => output,
    };
    quiet(&output);
    assert_eq!(fs::read_to_string(at("first")).unwrap(), GUIDE_OPTIONS);
    // On the second run flannel's script reads its own output, and so do we.
    let options = " --bip=172.20.28.1/24 --ip-masq=false --mtu=1450";
    let second = fs::read_to_string(at("second")).unwrap();
    let last = format!("DOCKER_NETWORK_OPTIONS=\"{options} {options}\"");
    assert_eq!(second.lines().last(), Some(last.as_str()));
    assert_eq!(second.lines().count(), 4);
    assert!(
        fs::read_to_string(at("default"))
            .unwrap()
            .contains("DOCKER_OPTS=\"")
    );
    digest(&at("first"));
}

fn unshare_refused(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).starts_with("unshare:")
}

/// MD5 of the file that flannel's own script wrote for the same input.
fn digest(file: &Path) {
    match Command::new("md5sum").arg(file).output() {
        Ok(output) => {
            let line = String::from_utf8(output.stdout).unwrap();
            assert_eq!(
                line.split_whitespace().next(),
                Some("beccaa8ebf0a0c9fff6b66992715941a")
            );
        }
        Err(error) => {
            crate::support::skipped(format!("the digest: no md5sum program: {error}"));
        }
    }
}
