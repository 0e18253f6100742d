//! `uvxlan demo`: two hosts and a container behind each on this machine, and what passes
//! between them.

mod cleanup;
mod figures;

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::cleanup::Cleanup;
use self::figures::{Figures, Row};
use crate::sys::netns;
use crate::testbed::traffic::{PingRequest, TransferRequest, ping, tcp_transfer};
use crate::testbed::{
    Container, DaemonProcess, Host, KernelVxlan, SubnetEnv, TestbedError, Topology, available,
    kernel_has_vxlan,
};
use crate::wire::vxlan::DEFAULT_PORT;
use crate::wire::{MacAddr, Vni};

const CONFIG: &str = r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const READY_WITHIN: Duration = Duration::from_secs(20);
const PINGS: u16 = 10;
const CLONE_DEVICE: &str = "/dev/net/tun";
/// Bytes whose digest is compared at both ends.
const VERIFIED: u64 = 8 << 20;

/// Arguments of `uvxlan demo`.
#[derive(clap::Args, Debug, Clone)]
pub struct DemoArgs {
    /// Mebibytes of the TCP transfer
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub size: u64,
    /// Leave everything running until Enter or Ctrl-C, to look around
    #[arg(long)]
    pub keep: bool,
    /// Leave out the comparison with the kernel's vxlan
    #[arg(long)]
    pub no_kernel: bool,
    /// Print the figures as JSON, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo.
#[must_use]
pub fn run(args: &DemoArgs) -> ExitCode {
    if let Err((message, status)) = permitted() {
        super::print_err(&format!("uvxlan demo: {message}\n"));
        return ExitCode::from(status);
    }
    match Demo::new(args).and_then(|mut demo| demo.play()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            super::print_err(&format!("uvxlan demo: {error}\n"));
            ExitCode::from(super::FAILURE)
        }
    }
}

/// Must run before any thread is started: a user namespace needs that.
fn permitted() -> Result<(), (String, u8)> {
    match std::fs::File::options()
        .read(true)
        .write(true)
        .open(CLONE_DEVICE)
    {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err((
                format!("no permission to open {CLONE_DEVICE}; run as root, or chmod 0666 it"),
                super::NO_PERMISSION,
            ));
        }
        Err(error) => {
            return Err((
                format!(
                    "{CLONE_DEVICE}: {error}; load the tun module (modprobe tun), or in a container \
                     pass the device in (docker run --device {CLONE_DEVICE})"
                ),
                super::NO_DEVICE,
            ));
        }
    }
    if available().is_ok() {
        return Ok(());
    }
    netns::unshare_user().map_err(|error| {
        let text = format!(
            "no permission to make network namespaces, and none to make a user namespace for that \
             ({error}); run as root, or allow user namespaces (sysctl user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns)"
        );
        (text, super::NO_PERMISSION)
    })?;
    available().map_err(|reason| (reason, super::NO_PERMISSION))
}

struct Demo<'a> {
    args: &'a DemoArgs,
    cleanup: Cleanup,
    program: PathBuf,
}

/// Two hosts that have each a container.
struct Pair {
    topology: Topology,
    containers: [Container; 2],
}

impl<'a> Demo<'a> {
    fn new(args: &'a DemoArgs) -> Result<Self, TestbedError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| TestbedError::Io {
                what,
                place: "this machine".into(),
                source,
            }
        };
        Ok(Self {
            args,
            cleanup: Cleanup::start().map_err(io("make a temporary folder"))?,
            program: std::env::current_exe().map_err(io("find this program's file"))?,
        })
    }

    fn say(&self, line: &str) {
        if !self.args.json {
            super::print_out(&format!("{line}\n"));
        }
    }

    fn play(&mut self) -> Result<u8, TestbedError> {
        let mut rows = vec![self.userspace()?];
        if !self.args.no_kernel {
            rows.push(self.kernel()?);
        }
        let good = rows
            .iter()
            .all(|row| row.figures.as_ref().is_none_or(Figures::is_good));
        if self.args.json {
            super::print_out(&figures::json(&rows));
        } else {
            super::print_out(&format!("\n{}", figures::table(&rows)));
        }
        Ok(if good { super::OK } else { super::FAILURE })
    }

    fn userspace(&mut self) -> Result<Row, TestbedError> {
        self.say("Two hosts in network namespaces of their own, joined by a virtual cable:");
        let topology = Topology::two_hosts()?;
        for host in topology.hosts() {
            self.say(&format!(
                "  {}  eth0 {}, MTU 1500",
                host.node().name(),
                host.address()
            ));
        }
        let store = self.cleanup.folder().join("store");
        write_config(&store)?;
        self.say("The network config, in a directory that both share (no etcd needed):");
        self.say(&format!("  {CONFIG}"));

        let (a, b) = topology.pair()?;
        let store_flag = format!("--store=dir:{}", store.display());
        let mut daemons = Vec::new();
        for host in [a, b] {
            let folder = self.cleanup.folder().join(host.node().name());
            let daemon = DaemonProcess::start(&self.program, host, &folder, [store_flag.as_str()])?;
            self.cleanup.child(daemon.pid());
            daemons.push(daemon);
        }
        self.say("A daemon on each (`uvxlan run`) leases a subnet and makes the device flannel.1:");
        let mut served = Vec::new();
        for (daemon, host) in daemons.iter_mut().zip([a, b]) {
            let env = daemon.ready(READY_WITHIN)?;
            self.say(&format!(
                "  {}  {}, device MTU {}  (pid {})",
                host.node().name(),
                env.subnet,
                env.mtu,
                daemon.pid()
            ));
            served.push(env);
        }
        self.say("What flannel would read in the store:");
        for env in &served {
            let name = format!("{}-{}", env.subnet.network(), env.subnet.prefix_len());
            let value =
                std::fs::read_to_string(store.join("subnets").join(&name)).unwrap_or_default();
            self.say(&format!("  subnets/{name}  {value}"));
        }
        let containers = [container(a, served[0])?, container(b, served[1])?];
        let pair = Pair {
            topology,
            containers,
        };
        self.wait_for_peers(&pair)?;
        let figures = self.measure(&pair)?;
        if self.args.keep {
            self.linger(&daemons, &pair);
        }
        Ok(Row {
            name: "uvxlan",
            figures: Some(figures),
            note: None,
        })
    }

    /// The same hosts and containers with the kernel's own device, set up as flannel does.
    fn kernel(&self) -> Result<Row, TestbedError> {
        let name = "kernel vxlan";
        if let Err(reason) = kernel_has_vxlan() {
            let note = Some(format!("not on this machine: {reason}"));
            return Ok(Row {
                name,
                figures: None,
                note,
            });
        }
        self.say("\nThe same again with the kernel's own vxlan, for comparison:");
        let topology = Topology::two_hosts()?;
        let (a, b) = topology.pair()?;
        let served: Vec<SubnetEnv> = [1u8, 2]
            .iter()
            .map(|number| SubnetEnv {
                subnet: subnet(*number),
                mtu: 1450,
            })
            .collect();
        let macs = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
        let start = |host, number: usize| {
            KernelVxlan::start(
                host,
                Vni::DEFAULT,
                DEFAULT_PORT,
                served[number].subnet,
                macs[number],
            )
        };
        let devices = [start(a, 0)?, start(b, 1)?];
        devices[0].add_peer(served[1].subnet, b.address(), macs[1])?;
        devices[1].add_peer(served[0].subnet, a.address(), macs[0])?;
        let containers = [container(a, served[0])?, container(b, served[1])?];
        let figures = self.measure(&Pair {
            topology,
            containers,
        })?;
        Ok(Row {
            name,
            figures: Some(figures),
            note: None,
        })
    }

    /// The daemon that was ready first does not know the other yet.
    fn wait_for_peers(&self, pair: &Pair) -> Result<(), TestbedError> {
        let [a, b] = &pair.containers;
        for _ in 0..50 {
            let request = PingRequest {
                count: 1,
                timeout: Duration::from_millis(200),
                ..PingRequest::new(b.address())
            };
            if ping(a.namespace(), request)?.is_complete() {
                return Ok(());
            }
        }
        Err(TestbedError::Request(format!(
            "no answer from {} at {} within ten seconds",
            b.address(),
            a.address()
        )))
    }

    fn measure(&self, pair: &Pair) -> Result<Figures, TestbedError> {
        let [a, b] = &pair.containers;
        let mut figures = Figures::default();
        for (from, to) in [(a, b), (b, a)] {
            let request = PingRequest {
                count: PINGS,
                ..PingRequest::new(to.address())
            };
            let report = ping(from.namespace(), request)?;
            figures.pinged(&report);
            let ttl = report.ttls.first().map_or("none".into(), u8::to_string);
            self.say(&format!(
                "  ping {} -> {}: {} of {} answered, ttl {ttl}",
                from.address(),
                to.address(),
                report.received,
                report.sent
            ));
        }
        let verified = TransferRequest::new(b.address(), VERIFIED.min(self.args.size << 20));
        let report = tcp_transfer(a.namespace(), b.namespace(), verified, |_| {})?;
        figures.intact = report.is_intact();
        figures.bits_per_second = self.transfer(a, b)?;
        Ok(figures)
    }

    fn transfer(&self, a: &Container, b: &Container) -> Result<f64, TestbedError> {
        let bytes = self.args.size << 20;
        let bar = self.progress_bar(bytes);
        let request = TransferRequest {
            verify: false,
            deadline: Duration::from_secs(300),
            ..TransferRequest::new(b.address(), bytes)
        };
        let report = tcp_transfer(a.namespace(), b.namespace(), request, |done| {
            bar.set_position(done)
        })?;
        bar.finish_and_clear();
        self.say(&format!(
            "  TCP {} -> {}: {} MiB in {:.2} s",
            a.address(),
            b.address(),
            self.args.size,
            report.seconds
        ));
        Ok(report.bits_per_second())
    }

    fn progress_bar(&self, bytes: u64) -> ProgressBar {
        let bar = ProgressBar::new(bytes);
        if self.args.json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = "  TCP {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }

    fn linger(&self, daemons: &[DaemonProcess], pair: &Pair) {
        self.say("\nAll of this keeps running. To look around, from another terminal, as root:");
        for (daemon, host) in daemons.iter().zip(pair.topology.hosts()) {
            let pid = daemon.pid();
            self.say(&format!(
                "  {}: nsenter --net=/proc/{pid}/ns/net ip route",
                host.node().name()
            ));
        }
        let own = std::process::id();
        for container in &pair.containers {
            let descriptor =
                std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(container.namespace()));
            self.say(&format!(
                "  {}: nsenter --net=/proc/{own}/fd/{descriptor} ip addr",
                container.node().name()
            ));
        }
        self.say(&format!(
            "Logs and store: {}. Enter ends it.",
            self.cleanup.folder().display()
        ));
        // An input that is closed already ends it as well.
        let _ = std::io::stdin().lock().read_line(&mut String::new());
    }
}

fn container(host: &Host, env: SubnetEnv) -> Result<Container, TestbedError> {
    host.add_container(env.subnet, env.mtu)
}

fn subnet(number: u8) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert([10, 42, number, 0].into(), 24)
}

fn write_config(store: &Path) -> Result<(), TestbedError> {
    let written =
        std::fs::create_dir_all(store).and_then(|()| std::fs::write(store.join("config"), CONFIG));
    written.map_err(|source| TestbedError::Io {
        what: "write the network config".into(),
        place: store.display().to_string(),
        source,
    })
}
