//! The bench's samples and medians, as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::contender::Contender;
use super::workload::{Sample, Workload};
use crate::testbed::NicClass;

pub(crate) struct Figures {
    contenders: Vec<String>,
    baseline: Option<usize>,
    classes: Vec<NicClass>,
    workloads: Vec<Workload>,
    samples: Vec<(usize, NicClass, Workload, Sample)>,
}

impl Figures {
    pub(crate) fn new(
        contenders: &[Contender],
        classes: &[NicClass],
        workloads: &[Workload],
    ) -> Self {
        Self {
            contenders: contenders.iter().map(|c| c.name().to_owned()).collect(),
            baseline: contenders.iter().position(Contender::is_baseline),
            classes: classes.to_vec(),
            workloads: workloads.to_vec(),
            samples: Vec::new(),
        }
    }

    pub(crate) fn contender(&self, number: usize) -> &str {
        self.contenders.get(number).map_or("", String::as_str)
    }

    pub(crate) fn contenders(&self) -> &[String] {
        &self.contenders
    }

    pub(crate) fn classes(&self) -> &[NicClass] {
        &self.classes
    }

    pub(crate) fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    pub(crate) fn add(
        &mut self,
        contender: usize,
        class: NicClass,
        workload: Workload,
        sample: Sample,
    ) {
        self.samples.push((contender, class, workload, sample));
    }

    fn samples(
        &self,
        contender: usize,
        class: NicClass,
        workload: Workload,
    ) -> impl Iterator<Item = Sample> {
        self.samples
            .iter()
            .filter(move |(who, nic, what, _)| (*who, *nic, *what) == (contender, class, workload))
            .map(|(.., sample)| *sample)
    }

    /// In basic units.
    pub(crate) fn median(&self, who: usize, class: NicClass, what: Workload) -> Option<f64> {
        median(self.samples(who, class, what).map(|sample| sample.value))
    }

    fn cpu(&self, who: usize, class: NicClass, what: Workload) -> Option<f64> {
        median(
            self.samples(who, class, what)
                .filter_map(|sample| sample.cpu_per_gigabit),
        )
    }

    /// A block for each class, a line for each workload, a column for each contender.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for class in &self.classes {
            if !text.is_empty() {
                text.push('\n');
            }
            let _ = write!(text, "{:<26}", format!("NIC class {class}"));
            for contender in &self.contenders {
                let _ = write!(text, "{contender:>22}");
            }
            text.push('\n');
            for workload in &self.workloads {
                let (unit, scale) = workload.unit();
                let value = |who| self.median(who, *class, *workload).map(|v| v / scale);
                self.line(&mut text, &workload.title(), unit, value);
                if matches!(workload, Workload::Tcp { .. }) {
                    let cpu = |who| self.cpu(who, *class, *workload);
                    self.line(&mut text, "  CPU per gigabit", "s", cpu);
                }
            }
        }
        text
    }

    fn line(
        &self,
        text: &mut String,
        title: &str,
        unit: &str,
        value: impl Fn(usize) -> Option<f64>,
    ) {
        let baseline = self.baseline.and_then(&value);
        let _ = write!(text, "{title:<26}");
        for who in 0..self.contenders.len() {
            let ratio = match (value(who), baseline) {
                (Some(value), Some(baseline)) if self.baseline != Some(who) => {
                    format!("{:.2}", value / baseline)
                }
                _ => String::new(),
            };
            let shown = value(who).map_or("-".into(), |value| format!("{} {unit}", digits(value)));
            let _ = write!(text, "{shown:>15}{ratio:>7}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }

    /// All samples in basic units (bit/s, datagrams/s, seconds), and the medians.
    pub(crate) fn json(&self) -> String {
        let mut rows = Vec::new();
        for class in &self.classes {
            for workload in &self.workloads {
                for (who, contender) in self.contenders.iter().enumerate() {
                    let samples: Vec<_> = self.samples(who, *class, *workload).collect();
                    let baseline = self
                        .baseline
                        .and_then(|baseline| self.median(baseline, *class, *workload));
                    let median = self.median(who, *class, *workload);
                    rows.push(json!({
                        "class": class.name(),
                        "workload": workload.name(),
                        "contender": contender,
                        "median": median,
                        "ratio_to_kernel": median.zip(baseline).map(|(a, b)| a / b),
                        "samples": samples.iter().map(|s| s.value).collect::<Vec<_>>(),
                        "cpu_seconds_per_gigabit": self.cpu(who, *class, *workload),
                    }));
                }
            }
        }
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let document: Value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": kernel.trim(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "units": {"tcp": "bit/s", "udp": "datagrams/s", "pingpong": "s"},
            "results": rows,
        });
        format!("{document:#}\n")
    }
}

/// Three digits: a measurement is no more precise than that.
fn digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::lab::bench::workload::parse;

    fn figures() -> Figures {
        let contenders = [Contender::Uvxlan, Contender::Kernel];
        let workloads = ["tcp1", "pingpong"].map(|name| parse(name).unwrap());
        let mut figures = Figures::new(&contenders, &[NicClass::Uso], &workloads);
        for (who, value) in [(0, 6e9), (0, 4e9), (0, 5e9), (1, 4e9)] {
            let sample = Sample {
                value,
                cpu_per_gigabit: Some(0.25),
            };
            figures.add(who, NicClass::Uso, workloads[0], sample);
        }
        figures
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let expected = "\
NIC class uso                             uvxlan          kernel vxlan
1 TCP stream                    5.00 Gb/s   1.25      4.00 Gb/s
  CPU per gigabit                 0.250 s   1.00        0.250 s
UDP round trip, median                  -                     -
";
        assert_eq!(figures().table(), expected);
    }

    #[test]
    fn json_has_every_sample() {
        let document: Value = serde_json::from_str(&figures().json()).unwrap();
        let first = &document["results"][0];
        assert_eq!(first["samples"], json!([6e9, 4e9, 5e9]));
        assert_eq!(first["median"], 5e9);
        assert_eq!(first["ratio_to_kernel"], 1.25);
        assert_eq!(document["results"][3]["median"], Value::Null);
    }

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_two() {
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}
