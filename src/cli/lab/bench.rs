//! `uvxlan bench`: this program beside the kernel's own vxlan, in the demo's topology.

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
use super::namespaces;
use crate::testbed::{NicClass, Pair, TestbedError};

/// Arguments of `uvxlan bench`.
#[derive(clap::Args, Debug, Clone)]
#[command(after_long_help = NOTES)]
pub struct BenchArgs {
    /// Runs of each workload; medians of them are shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Seconds of each run
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// What the hosts' NICs offload: full, uso, plain, none
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',', value_parser = class, default_values = ["full", "uso", "plain", "none"])]
    class: Vec<NicClass>,
    /// What to measure: tcp1, tcp4, udp64, udp1400, pingpong
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = workload::parse, default_values = ["tcp1", "tcp4", "udp64", "udp1400", "pingpong"])]
    workload: Vec<Workload>,
    /// Another contender: this program, or another build of it, with other flags of `uvxlan run`
    #[arg(long, value_name = "NAME=[PROGRAM] [FLAGS]", value_parser = contender::parse_variant)]
    variant: Vec<Variant>,
    /// Leave out the kernel's vxlan
    #[arg(long)]
    no_kernel: bool,
    /// Add the kernel's vxlan with flannel's workaround for NAT (no checksum offload)
    #[arg(long)]
    workaround: bool,
    /// Print all samples and medians as JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// Write a chart (SVG) to this file
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

const NOTES: &str = "\
Two hosts in network namespaces of their own, a container on each, and traffic between the
containers. The contenders take turns, run by run, so that a noisy machine hurts all alike.
Ratios are to the kernel's vxlan; of latency and CPU, less is better.

NIC classes, set on the virtual cable between the hosts:
  full   packets of 64 KiB pass whole, tunnelled or not; nothing is ever checksummed
  uso    segmentation of TCP and UDP, and not inside of tunnels (most virtual NICs)
  plain  checksums only; packets are joined on receive
  none   checksums only; nothing is joined on receive

Examples:
  uvxlan bench --class=uso --workload=tcp1
  uvxlan bench --variant='one worker=--workers=1' --runs=9";

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.1..=600.0).contains(&value) => Ok(value),
        _ => Err("0.1 to 600 seconds are possible".into()),
    }
}

fn class(text: &str) -> Result<NicClass, String> {
    NicClass::ALL
        .into_iter()
        .find(|class| class.name() == text)
        .ok_or_else(|| "the classes are full, uso, plain and none".into())
}

/// Runs the bench.
#[must_use]
pub fn run(args: &BenchArgs) -> ExitCode {
    if let Err(refused) = namespaces::permitted() {
        crate::cli::print_err(&format!("uvxlan bench: {}\n", refused.message));
        return ExitCode::from(refused.status);
    }
    match measure(args).and_then(|figures| publish(args, &figures)) {
        Ok(()) => ExitCode::from(crate::cli::OK),
        Err(error) => {
            crate::cli::print_err(&format!("uvxlan bench: {error}\n"));
            ExitCode::from(crate::cli::FAILURE)
        }
    }
}

fn publish(args: &BenchArgs, figures: &Figures) -> Result<(), TestbedError> {
    if args.json {
        crate::cli::print_out(&figures.json());
    } else {
        crate::cli::print_out(&figures.table());
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
            Err(reason) => crate::cli::print_err(&format!("uvxlan bench: {reason}\n")),
        }
    }
    let io = |what: &str, source| TestbedError::Io {
        what: what.to_owned(),
        place: "this machine".into(),
        source,
    };
    let cleanup = Cleanup::start("bench").map_err(|error| io("make a temporary folder", error))?;
    let program = std::env::current_exe().map_err(|error| io("find this program's file", error))?;
    let mut figures = Figures::new(&contenders, &args.class, &args.workload);
    for class in &args.class {
        let mut pairs = Vec::new();
        for (number, contender) in contenders.iter().enumerate() {
            let folder = cleanup.folder().join(format!("{class}-{number}"));
            let pair = contender.start(&program, &folder)?;
            for daemon in &pair.daemons {
                cleanup.child(daemon.pid());
            }
            pair.set_nic(*class)?;
            pairs.push(pair);
        }
        measure_class(args, *class, &pairs, &mut figures)?;
    }
    Ok(figures)
}

/// All contenders are up; those that are not measured are idle.
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
                    crate::cli::print_err(&format!(
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
        crate::cli::print_err("\x1b[K");
    }
    Ok(())
}
