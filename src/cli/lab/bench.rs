//! `uvxlan bench`: compares this program with the kernel's vxlan, in the demo's topology.

mod chart;
mod contender;
mod figures;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use self::contender::{Contender, Variant};
use self::figures::Figures;
use self::workload::Workload;
use super::cleanup::Cleanup;
use super::{io_error, namespaces};
use crate::cli::{FAILURE, OK, fail, print_err, print_out, seconds};
use crate::testbed::{NicClass, Pair, TestbedError};

/// Arguments of `uvxlan bench`.
#[derive(clap::Args, Debug)]
#[command(after_long_help = NOTES)]
pub(crate) struct BenchArgs {
    /// Runs of each workload; the table shows medians
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Length of each run
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds(0.1..=600.0))]
    seconds: f64,
    /// NIC classes of the hosts: full, uso, plain, none
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',', value_parser = class, default_values = ["full", "uso", "plain", "none"])]
    class: Vec<NicClass>,
    /// Workloads: tcp1, tcp4, udp64, udp1400, pingpong
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = workload::parse, default_values = ["tcp1", "tcp4", "udp64", "udp1400", "pingpong"])]
    workload: Vec<Workload>,
    /// Add a contender: this program, or another build of it, with flags of 'uvxlan run'
    #[arg(long, value_name = "NAME=[PROGRAM] [FLAGS]", value_parser = contender::parse_variant)]
    variant: Vec<Variant>,
    /// Skip the kernel's vxlan
    #[arg(long)]
    no_kernel: bool,
    /// Add the kernel's vxlan with flannel's workaround for NAT (no checksum offload)
    #[arg(long)]
    workaround: bool,
    /// Print only the samples and medians, as JSON
    #[arg(long)]
    json: bool,
    /// Also write a chart (SVG) to this file
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

const NOTES: &str = "\
The bench sets up two hosts in network namespaces, with a container on each, and sends traffic
between the containers. The contenders take turns, run by run, so that noise on the machine affects
all of them. Ratios are relative to the kernel's vxlan; for latency and CPU, lower is better.

NIC classes, set on the virtual cable between the hosts:
  full   packets of 64 KiB pass whole, tunnelled or not; checksums are never computed
  uso    segmentation of TCP and UDP, but not inside of tunnels (most virtual NICs)
  plain  checksums only; packets are joined on receive
  none   checksums only; nothing is joined on receive

Examples:
  uvxlan bench --class=uso --workload=tcp1
  uvxlan bench --variant='one worker=--workers=1' --runs=9";

fn class(text: &str) -> Result<NicClass, String> {
    NicClass::ALL
        .into_iter()
        .find(|class| class.name() == text)
        .ok_or_else(|| "expected full, uso, plain or none".into())
}

pub(crate) fn run(args: &BenchArgs) -> ExitCode {
    if let Err(refused) = namespaces::require() {
        return fail("bench", refused.status, refused.message);
    }
    match measure(args).and_then(|figures| publish(args, &figures)) {
        Ok(()) => ExitCode::from(OK),
        Err(error) => fail("bench", FAILURE, error),
    }
}

fn publish(args: &BenchArgs, figures: &Figures) -> Result<(), TestbedError> {
    if args.json {
        print_out(&figures.json());
    } else {
        print_out(&figures.table());
    }
    if let Some(path) = &args.chart {
        std::fs::write(path, chart::svg(figures)).map_err(|source| TestbedError::Io {
            what: "write the chart".into(),
            place: path.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

fn measure(args: &BenchArgs) -> Result<Figures, TestbedError> {
    let mut contenders = vec![Contender::Uvxlan];
    contenders.extend(args.variant.iter().cloned().map(Contender::Variant));
    if !args.no_kernel {
        match crate::testbed::kernel_has_vxlan() {
            Ok(()) => {
                contenders.push(Contender::Kernel);
                if args.workaround {
                    contenders.push(Contender::Workaround);
                }
            }
            Err(reason) => print_err(&format!("uvxlan bench: {reason}\n")),
        }
    }
    let cleanup = Cleanup::start("bench").map_err(io_error("make a temporary folder"))?;
    let program = std::env::current_exe().map_err(io_error("find this program's file"))?;
    let mut figures = Figures::new(&contenders, &args.class, &args.workload);
    for class in &args.class {
        let mut pairs = Vec::new();
        for (number, contender) in contenders.iter().enumerate() {
            let folder = cleanup.folder().join(format!("{class}-{number}"));
            let pair = contender.start(&program, &folder)?;
            for daemon in &pair.daemons {
                cleanup.add_child(daemon.pid());
            }
            pair.set_nic(*class)?;
            pairs.push(pair);
        }
        measure_class(args, *class, &pairs, &mut figures)?;
    }
    Ok(figures)
}

/// Measures one contender at a time; the others are running but idle.
fn measure_class(
    args: &BenchArgs,
    class: NicClass,
    pairs: &[Pair],
    figures: &mut Figures,
) -> Result<(), TestbedError> {
    let duration = Duration::from_secs_f64(args.seconds);
    for run in 1..=args.runs {
        for workload in &args.workload {
            for (contender, pair) in pairs.iter().enumerate() {
                if !args.json {
                    print_err(&format!(
                        "class {class}, run {run} of {}: {} with {}\x1b[K\r",
                        args.runs,
                        workload.name(),
                        figures.contender(contender)
                    ));
                }
                let sample = workload.run(pair, duration)?;
                figures.add(contender, class, *workload, sample);
            }
        }
    }
    if !args.json {
        print_err("\x1b[K");
    }
    Ok(())
}
