//! The figures as a chart: one panel for each workload, bars for each NIC class.

use std::fmt::Write;

use super::figures::Figures;
use super::workload::Workload;

const PANEL_WIDTH: f64 = 360.0;
const PANEL_HEIGHT: f64 = 220.0;
const MARGIN: f64 = 20.0;
const TITLE: f64 = 30.0;
const AXIS: f64 = 26.0;
const LEGEND: f64 = 34.0;
const COLUMNS: usize = 2;
/// Distinguishable with most kinds of colour blindness.
const COLOURS: [&str; 6] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
];

/// An SVG document. It sets its colours and a background, so that it is readable on light and
/// dark pages.
pub(crate) fn svg(figures: &Figures) -> String {
    let workloads = figures.workloads();
    let columns = workloads.len().clamp(1, COLUMNS);
    let rows = workloads.len().div_ceil(columns);
    let width = columns as f64 * (PANEL_WIDTH + MARGIN) + MARGIN;
    let height = rows as f64 * (PANEL_HEIGHT + MARGIN) + MARGIN + LEGEND;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (number, contender) in figures.contenders().iter().enumerate() {
        let x = MARGIN + number as f64 * 170.0;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"24\">{}</text>",
            colour(number),
            x + 18.0,
            escape(contender)
        );
    }
    for (number, workload) in workloads.iter().enumerate() {
        let x = MARGIN + (number % columns) as f64 * (PANEL_WIDTH + MARGIN);
        let y = LEGEND + MARGIN + (number / columns) as f64 * (PANEL_HEIGHT + MARGIN);
        let _ = writeln!(out, "<g transform=\"translate({x},{y})\">");
        panel(&mut out, figures, *workload);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, figures: &Figures, workload: Workload) {
    let (unit, scale) = workload.unit();
    let better = match workload {
        Workload::PingPong => "lower is better",
        _ => "higher is better",
    };
    let _ = writeln!(
        out,
        "<text y=\"14\" font-weight=\"bold\">{}, {unit}</text>\
         <text x=\"{PANEL_WIDTH}\" y=\"14\" text-anchor=\"end\" fill=\"#666666\">{better}</text>",
        escape(&workload.title())
    );
    let value = |who, class| figures.median(who, class, workload).map(|v| v / scale);
    let largest = figures
        .classes()
        .iter()
        .flat_map(|class| (0..figures.contenders().len()).filter_map(|who| value(who, *class)))
        .fold(0.0, f64::max);
    let floor = PANEL_HEIGHT - AXIS;
    let group = PANEL_WIDTH / figures.classes().len().max(1) as f64;
    let bar = group * 0.8 / figures.contenders().len().max(1) as f64;
    for (place, class) in figures.classes().iter().enumerate() {
        let left = place as f64 * group;
        for who in 0..figures.contenders().len() {
            let Some(value) = value(who, *class) else {
                continue;
            };
            // Leaves room for the figure above the highest bar.
            let high = (floor - TITLE - 14.0) * value / largest.max(f64::MIN_POSITIVE);
            let x = left + group * 0.1 + who as f64 * bar;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{high:.1}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
                floor - high,
                bar - 2.0,
                colour(who),
                x + bar / 2.0,
                floor - high - 3.0,
                short(value)
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{class}</text>",
            left + group / 2.0,
            PANEL_HEIGHT - 8.0
        );
    }
    let _ = writeln!(
        out,
        "<line x1=\"0\" y1=\"{floor}\" x2=\"{PANEL_WIDTH}\" y2=\"{floor}\" stroke=\"#666666\"/>"
    );
}

fn short(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::lab::bench::contender::{Contender, parse_variant};
    use crate::cli::lab::bench::workload::{Sample, parse};
    use crate::testbed::NicClass;

    #[test]
    fn every_median_is_a_bar_and_names_are_escaped() {
        let variant = parse_variant("<odd>=--workers=1").unwrap();
        let contenders = [Contender::Kernel, Contender::Variant(variant)];
        let workload = parse("udp64").unwrap();
        let mut figures = Figures::new(&contenders, &NicClass::ALL, &[workload]);
        for class in NicClass::ALL {
            for who in 0..2 {
                let sample = Sample {
                    value: 123_000.0,
                    cpu_per_gigabit: None,
                };
                figures.add(who, class, workload, sample);
            }
        }
        let picture = svg(&figures);
        assert_eq!(picture.matches(">123<").count(), 8);
        assert!(picture.contains("&lt;odd&gt;") && !picture.contains("<odd>"));
        assert!(picture.ends_with("</svg>\n"));
    }
}
