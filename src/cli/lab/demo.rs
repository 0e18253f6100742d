//! `uvxlan demo`: two hosts on this machine, a container on each, and traffic between them.

mod figures;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::figures::{Figures, Row};
use super::cleanup::Cleanup;
use super::{io_error, namespaces};
use crate::cli::{FAILURE, OK, fail, print_out};
use crate::testbed::pair::{self, start_daemons};
use crate::testbed::traffic::{PingRequest, TransferRequest, ping, tcp_transfer};
use crate::testbed::{Container, Pair, TestbedError, Topology, kernel_has_vxlan};

const PINGS: u16 = 10;
/// Bytes of the transfer whose digest is compared at both ends.
const VERIFIED: u64 = 8 << 20;

/// Arguments of `uvxlan demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// Size of the TCP transfer, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    size: u64,
    /// Keep everything running until Enter or Ctrl-C, and print commands to explore it
    #[arg(long)]
    keep: bool,
    /// Skip the comparison with the kernel's vxlan
    #[arg(long)]
    no_kernel: bool,
    /// Print only the results, as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    if let Err(refused) = namespaces::require() {
        return fail("demo", refused.status, refused.message);
    }
    match Demo::new(args).and_then(|mut demo| demo.play()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail("demo", FAILURE, error),
    }
}

struct Demo<'a> {
    args: &'a DemoArgs,
    cleanup: Cleanup,
    program: PathBuf,
}

impl<'a> Demo<'a> {
    fn new(args: &'a DemoArgs) -> Result<Self, TestbedError> {
        Ok(Self {
            args,
            cleanup: Cleanup::start("demo").map_err(io_error("make a temporary folder"))?,
            program: std::env::current_exe().map_err(io_error("find this program's file"))?,
        })
    }

    fn say(&self, line: &str) {
        if !self.args.json {
            print_out(&format!("{line}\n"));
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
            print_out(&figures::json(&rows));
        } else {
            print_out(&format!("\n{}", figures::table(&rows)));
        }
        Ok(if good { OK } else { FAILURE })
    }

    fn userspace(&mut self) -> Result<Row, TestbedError> {
        self.say("Two hosts, each in its own network namespace, joined by a virtual cable:");
        let topology = Topology::two_hosts()?;
        for host in topology.hosts() {
            self.say(&format!(
                "  {}  eth0 {}, MTU 1500",
                host.node().name(),
                host.address()
            ));
        }
        let store = pair::write_config(self.cleanup.folder())?;
        self.say("The network config, in a directory that both share (no etcd needed):");
        self.say(&format!("  {}", pair::CONFIG));

        let mut daemons = start_daemons(&topology, &self.program, self.cleanup.folder(), &[])?;
        for daemon in &daemons {
            self.cleanup.add_child(daemon.pid());
        }
        self.say(
            "On each, a daemon (`uvxlan run`) leases a subnet and makes the device flannel.1:",
        );
        let mut subnets = Vec::new();
        for (daemon, host) in daemons.iter_mut().zip(topology.hosts()) {
            let env = daemon.ready(pair::READY_TIMEOUT)?;
            self.say(&format!(
                "  {}  {}, device MTU {}  (pid {})",
                host.node().name(),
                env.subnet,
                env.mtu,
                daemon.pid()
            ));
            subnets.push(env);
        }
        self.say("The leases in the datastore, as flannel would read them:");
        for env in &subnets {
            let name = format!("{}-{}", env.subnet.network(), env.subnet.prefix_len());
            let value =
                std::fs::read_to_string(store.join("subnets").join(&name)).unwrap_or_default();
            self.say(&format!("  subnets/{name}  {value}"));
        }
        let pair = Pair::of_daemons(topology, daemons, &subnets)?;
        let figures = self.measure(&pair)?;
        if self.args.keep {
            self.linger(&pair);
        }
        Ok(Row {
            name: "uvxlan",
            figures: Some(figures),
            note: None,
        })
    }

    /// Measures the same hosts and containers with the kernel's device, set up as by flannel.
    fn kernel(&self) -> Result<Row, TestbedError> {
        let name = "kernel vxlan";
        if let Err(reason) = kernel_has_vxlan() {
            let note = Some(format!("not available here: {reason}"));
            return Ok(Row {
                name,
                figures: None,
                note,
            });
        }
        self.say("\nThe same again with the kernel's own vxlan, for comparison:");
        let figures = self.measure(&Pair::kernel()?)?;
        Ok(Row {
            name,
            figures: Some(figures),
            note: None,
        })
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
            figures.add_pings(&report);
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

    fn linger(&self, pair: &Pair) {
        self.say("\nEverything keeps running. Commands to try as root in another terminal:");
        let program = self.program.display();
        let own = std::process::id();
        let nodes = pair.daemons.iter().zip(pair.topology.hosts());
        for ((daemon, host), container) in nodes.zip(&pair.containers) {
            let enter = format!("nsenter --net=/proc/{}/ns/net", daemon.pid());
            self.say(&format!("  on {}:", host.node().name()));
            for command in ["status", "top", "doctor"] {
                self.say(&format!("    {enter} {program} {command}"));
            }
            self.say(&format!("    {enter} ip route"));
            let descriptor =
                std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(container.namespace()));
            let others = pair.containers.iter().map(Container::address);
            let other = others.filter(|address| *address != container.address());
            for other in other {
                self.say(&format!("    {enter} {program} trace {other}"));
                self.say(&format!("  in {}:", container.node().name()));
                self.say(&format!(
                    "    nsenter --net=/proc/{own}/fd/{descriptor} ping -c 3 {other}"
                ));
            }
        }
        self.say(&format!(
            "Logs and datastore: {}. Press Enter to end.",
            self.cleanup.folder().display()
        ));
        // Closed input ends it as well.
        let _ = std::io::stdin().lock().read_line(&mut String::new());
    }
}
