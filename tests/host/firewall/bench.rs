//! A host whose daemon sees the tools that a test provides, and the rules as flannel writes them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::Ipv4Net;
use uvxlan::testbed::{DaemonProcess, Host, Topology};

use crate::support::nodes::{NodeUnderTest, PROGRAM, TIMEOUT, executable};

pub(crate) const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
pub(crate) const NETWORK: &str = "10.5.0.0/16";
pub(crate) const HEALTH: u16 = 8285;

/// A foreign rule in the nat table, like Docker's.
pub(crate) const FOREIGN_RULE: &str =
    "-A POSTROUTING -s 198.18.0.0/24 ! -o docker0 -j MASQUERADE\n";

/// The tool that has the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    IptablesNft,
    IptablesLegacy,
    Nft,
}

impl Tool {
    pub(crate) const ALL: [Self; 3] = [Self::IptablesNft, Self::IptablesLegacy, Self::Nft];
    pub(crate) const IPTABLES: [Self; 2] = [Self::IptablesNft, Self::IptablesLegacy];

    /// The flag that makes the daemon use it.
    pub(crate) fn flag(self) -> String {
        let name = match self {
            Self::Nft => "nftables",
            Self::IptablesNft | Self::IptablesLegacy => "iptables",
        };
        format!("--firewall={name}")
    }

    /// Its program of iptables.
    fn multi(self) -> PathBuf {
        let name = match self {
            Self::IptablesLegacy => "xtables-legacy-multi",
            Self::IptablesNft | Self::Nft => "xtables-nft-multi",
        };
        find(name)
    }
}

/// The path of a program.
pub(crate) fn find(name: &str) -> PathBuf {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no {name}"))
}

/// A host with a folder of programs that precede or replace those of the machine.
pub(crate) struct Bench {
    pub(crate) topology: Topology,
    pub(crate) folder: tempfile::TempDir,
    path: String,
}

impl Bench {
    /// The machine's programs, with the iptables of one backend.
    pub(crate) fn new(tool: Tool) -> Self {
        let mut this = Self::without_tools();
        let rest = std::env::var("PATH").unwrap();
        this.path = format!("{}:{rest}", this.bin().display());
        for family in ["iptables", "ip6tables"] {
            for what in ["", "-save", "-restore"] {
                this.link(&format!("{family}{what}"), &tool.multi());
            }
        }
        this
    }

    /// None of the machine's programs.
    pub(crate) fn without_tools() -> Self {
        let topology = Topology::two_hosts().unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let path = folder.path().join("bin").display().to_string();
        let this = Self {
            topology,
            folder,
            path,
        };
        this.write_config(CONFIG);
        this
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// Links a program under another name.
    pub(crate) fn link(&self, name: &str, program: &Path) {
        let link = self.bin().join(name);
        let _ = fs::remove_file(&link);
        symlink(program, link).unwrap();
    }

    /// Replaces a program by a script, in which `REAL` is the program.
    pub(crate) fn script(&self, name: &str, tool: Tool, text: &str) {
        let real = self.bin().join("real");
        fs::create_dir_all(&real).unwrap();
        let real = real.join(name);
        if !real.exists() {
            symlink(tool.multi(), &real).unwrap();
        }
        let text = text.replace("REAL", real.to_str().unwrap());
        executable(&self.bin().join(name), &format!("#!/bin/sh\n{text}"));
    }

    pub(crate) fn host(&self) -> &Host {
        &self.topology.hosts()[0]
    }

    pub(crate) fn write_config(&self, config: &str) {
        let store = self.folder.path().join("store");
        fs::create_dir_all(&store).unwrap();
        fs::write(store.join("config"), config).unwrap();
    }

    /// The same cluster, with another network.
    pub(crate) fn change_network(&self) {
        self.write_config(&CONFIG.replace("10.5.", "10.6."));
        fs::remove_dir_all(self.folder.path().join("store/subnets")).unwrap();
    }

    fn flags(&self, flags: &[&str]) -> Vec<String> {
        let store = self.folder.path().join("store");
        let mut all = vec![format!("--store=dir:{}", store.display())];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        all
    }

    /// The daemon's program. It looks up programs in the PATH of its process, which a shell sets.
    fn program(&self) -> PathBuf {
        let wrapper = self.folder.path().join("uvxlan-with-path");
        let lock = self.lock();
        let text = format!(
            "#!/bin/sh\nexport XTABLES_LOCKFILE='{}'\nPATH='{}' exec {PROGRAM} \"$@\"\n",
            lock.display(),
            self.path
        );
        executable(&wrapper, &text);
        wrapper
    }

    /// The lock of this host's iptables.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.path().join("xtables.lock")
    }

    /// A node whose daemon serves.
    pub(crate) fn node(&self, flags: &[&str]) -> NodeUnderTest {
        let (program, flags) = (self.program(), self.flags(flags));
        NodeUnderTest::start_program(&program, self.host(), self.folder.path(), &flags)
    }

    /// A daemon, started without waiting for it.
    pub(crate) fn daemon(&self, folder: &Path, flags: &[&str]) -> DaemonProcess {
        let flags = self.flags(flags);
        let flags = flags.iter().map(String::as_str);
        DaemonProcess::start(&self.program(), self.host(), folder, flags).unwrap()
    }

    /// Runs a shell line in the host's namespace, with the machine's programs and ours.
    pub(crate) fn shell(&self, line: &str) -> String {
        let rest = std::env::var("PATH").unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .env("XTABLES_LOCKFILE", self.lock())
            .env("PATH", format!("{}:{rest}", self.bin().display()));
        let output = self.host().namespace().command(command).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The rules of iptables, without the program's comments and without counters.
    pub(crate) fn saved(&self) -> String {
        let text = self.shell("iptables-save -t nat; iptables-save -t filter");
        let ours = |line: &&str| line.starts_with("-A") || line.starts_with(":FLANNEL");
        let rules = text.lines().filter(ours);
        let rules = rules.map(|line| line.split(" - [").next().unwrap());
        rules.map(|line| format!("{line}\n")).collect()
    }

    /// The tables of nftables with flannel's names.
    pub(crate) fn tables(&self) -> String {
        let tables = self.shell("nft list tables");
        // In the order of their creation.
        let mut ours: Vec<_> = tables
            .lines()
            .filter(|line| line.contains("flannel"))
            .collect();
        ours.sort_unstable();
        let listed = ours
            .iter()
            .map(|table| self.shell(&format!("nft list {table}")));
        listed.collect()
    }

    /// The response of /readyz: status and body.
    pub(crate) fn readiness(&self) -> (u16, String) {
        let address = (self.host().address(), HEALTH);
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let answer = self.host().namespace().run(ask).unwrap();
        let answer = answer.unwrap_or_default();
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        (status.unwrap_or(0), body.to_owned())
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.readiness() == (200, "flanneld is ready".into())
    }
}

/// The rules of the newest flannel in `iptables-save`, chains before rules.
pub(crate) fn of_iptables(network: &str, subnet: Ipv4Net, masquerade: bool) -> String {
    let (nat, filter) = parts_of_iptables(network, &subnet.to_string(), " --random-fully");
    let nat = if masquerade {
        nat
    } else {
        [String::new(), String::new()]
    };
    format!("{}{}{}{}", nat[0], nat[1], filter[0], filter[1])
}

/// Chain and rules of nat, and of filter.
pub(crate) fn parts_of_iptables(n: &str, p: &str, random: &str) -> ([String; 2], [String; 2]) {
    let masq = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\"";
    let nat = format!(
        "-A POSTROUTING {masq} -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {p} -d {n} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {n} -d {p} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {n} -d {p} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {n} ! -d 224.0.0.0/4 {masq} -j MASQUERADE{random}\n\
         -A FLANNEL-POSTRTG ! -s {n} -d {n} {masq} -j MASQUERADE{random}\n"
    );
    let filter = format!(
        "-A FORWARD {forward} -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {n} {forward} -j ACCEPT\n\
         -A FLANNEL-FWD -d {n} {forward} -j ACCEPT\n"
    );
    (
        [":FLANNEL-POSTRTG\n".into(), nat],
        [":FLANNEL-FWD\n".into(), filter],
    )
}

/// The rules of the newest flannel in `nft list table ip flannel-ipv4`.
pub(crate) fn of_nftables(n: &str, p: Ipv4Net, masquerade: bool) -> String {
    let nat = format!(
        "\tchain postrtg {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tmeta mark 0x00004000 return\n\
         \t\tip saddr {p} ip daddr {n} return\n\
         \t\tip saddr {n} ip daddr {p} return\n\
         \t\tip saddr != {p} ip daddr {n} return\n\
         \t\tip saddr {n} ip daddr != 224.0.0.0/4 masquerade fully-random\n\
         \t\tip saddr != {n} ip daddr {n} masquerade fully-random\n\
         \t}}\n\n"
    );
    let nat = if masquerade { nat } else { String::new() };
    format!(
        "table ip flannel-ipv4 {{\n{nat}\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tip saddr {n} accept\n\
         \t\tip daddr {n} accept\n\
         \t}}\n}}\n"
    )
}
