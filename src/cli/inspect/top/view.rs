//! The screen of `uvxlan top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::model::{Model, Order, PeerRow, Rate};
use crate::control::PeerState;

/// What the keys control, and the last error.
#[derive(Debug, Default)]
pub(super) struct ViewState {
    pub(super) order: Order,
    pub(super) paused: bool,
    /// First peer to show.
    pub(super) scroll: usize,
    pub(super) error: Option<String>,
}

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, view: &ViewState) {
    let drops = u16::try_from(model.drops.len().clamp(1, 6)).unwrap_or(6) + 2;
    let [head, traffic, peers, drop_area, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(6),
        Constraint::Min(4),
        Constraint::Length(drops),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(header(model, view), head);
    sparklines(frame, traffic, model);
    frame.render_widget(peer_table(model, view, peers.height), peers);
    frame.render_widget(drop_table(model), drop_area);
    let keys = "q quit   p pause   s sort   ↑↓ scroll";
    frame.render_widget(
        Paragraph::new(keys).style(Style::new().fg(Color::DarkGray)),
        foot,
    );
}

fn header<'a>(model: &Model, view: &ViewState) -> Paragraph<'a> {
    let status = &model.status;
    let node = match &status.node {
        Some(node) => format!(
            "{} on {} ({}), {} peer{}",
            node.subnet,
            node.public_ip,
            node.interface,
            status.peers.len(),
            if status.peers.len() == 1 { "" } else { "s" }
        ),
        None => status.phase.to_string(),
    };
    let mut first = vec![
        Span::styled(
            format!("uvxlan {}  ", status.version),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::raw(node),
    ];
    if view.paused {
        first.push(Span::styled("  PAUSED", Style::new().fg(Color::Yellow)));
    }
    let second = match &view.error {
        Some(text) => Line::styled(text.clone(), Style::new().fg(Color::Red)),
        None => Line::raw(format!("datastore: lease {}", status.datastore.lease)),
    };
    let [send, receive, write] = model.batches;
    let cpu: Vec<_> = model
        .cpu
        .iter()
        .map(|(name, share)| format!("{name} {share:.0} %"))
        .collect();
    let third = Line::raw(format!(
        "packets per call: sent {send:.1}, received {receive:.1}, written {write:.1}   CPU: {}",
        cpu.join(", ")
    ));
    Paragraph::new(vec![Line::from(first), second, third])
}

fn sparklines(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let halves = Layout::horizontal([Constraint::Percentage(50); 2]).areas::<2>(area);
    let names = ["to peers", "from peers"];
    for (((half, name), rate), history) in halves
        .into_iter()
        .zip(names)
        .zip(model.total)
        .zip(&model.history)
    {
        let title = format!(" {name}: {}, {} ", bits(rate.bits), packets(rate.packets));
        let shown = usize::from(half.width.saturating_sub(2));
        let data: Vec<u64> = history.iter().rev().take(shown).rev().copied().collect();
        let line = Sparkline::default()
            .block(Block::bordered().title(title))
            .style(Style::new().fg(Color::Cyan))
            .data(data);
        frame.render_widget(line, half);
    }
}

fn peer_table<'a>(model: &Model, view: &ViewState, height: u16) -> Table<'a> {
    let rows = model.sorted(view.order);
    let total = rows.len();
    // Two lines of border, one of headings.
    let shown = usize::from(height.saturating_sub(3));
    let first = view.scroll.min(total.saturating_sub(1));
    let lines = rows.into_iter().skip(first).take(shown).map(peer_row);
    let widths = [
        Constraint::Length(18),
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Length(22),
        Constraint::Length(22),
    ];
    let heading = ["SUBNET", "PUBLIC IP", "STATE", "RTT", "LOSS", "TO", "FROM"];
    let title = format!(
        " peers {}..{} of {total}, by {} ",
        (first + 1).min(total),
        (first + shown).min(total),
        view.order.label()
    );
    Table::new(lines, widths)
        .header(Row::new(heading).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::bordered().title(title))
}

fn peer_row<'a>(row: &PeerRow) -> Row<'a> {
    let peer = &row.peer;
    let colour = match &peer.state {
        PeerState::Ok => Color::Green,
        state if state.is_bad() => Color::Red,
        _ => Color::Yellow,
    };
    let rate = |rate: Rate| format!("{} {}", bits(rate.bits), packets(rate.packets));
    Row::new([
        Cell::from(peer.subnet.to_string()),
        Cell::from(peer.public_ip.to_string()),
        Cell::from(peer.state.to_string()).style(Style::new().fg(colour)),
        Cell::from(
            peer.rtt_us
                .map_or("-".into(), |us| format!("{:.2} ms", us as f64 / 1e3)),
        ),
        Cell::from(
            peer.loss_percent
                .map_or("-".into(), |loss| format!("{loss} %")),
        ),
        Cell::from(rate(row.out)),
        Cell::from(rate(row.inward)),
    ])
}

fn drop_table<'a>(model: &Model) -> Paragraph<'a> {
    let mut lines: Vec<_> = model
        .drops
        .iter()
        .take(6)
        .map(|(name, rate, total)| {
            let style = match *rate > 0.0 {
                true => Style::new().fg(Color::Red),
                false => Style::new(),
            };
            Line::styled(format!("{name:<24} {rate:>10.1}/s   {total} total"), style)
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line::raw("none"));
    }
    Paragraph::new(lines).block(Block::bordered().title(" dropped packets "))
}

/// A rate with a decimal unit.
fn bits(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} Gb/s", v / 1e9),
        v if v >= 1e6 => format!("{:.1} Mb/s", v / 1e6),
        v if v >= 1e3 => format!("{:.1} kb/s", v / 1e3),
        v => format!("{v:.0} b/s"),
    }
}

fn packets(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} Mp/s", v / 1e6),
        v if v >= 1e4 => format!("{:.1} kp/s", v / 1e3),
        v => format!("{v:.0} p/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::sample;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(width: u16, height: u16, view: &ViewState) -> String {
        let mut model = Model::default();
        model.update(sample(1, 1000, 4), 100.0);
        model.update(sample(3, 3000, 8), 100.0);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &model, view)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width));
        lines
            .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>() + "\n")
            .collect()
    }

    #[test]
    fn the_screen_has_peers_rates_and_drops() {
        let shown = screen(110, 30, &ViewState::default());
        for words in [
            "to peers: 32.0 Mb/s, 4000 p/s",
            "peers 1..2 of 2, by traffic",
            "10.5.1.0/24",
            "24.0 Mb/s 3000 p/s",
            "out_no_route",
            "2.0/s   8 total",
            "sent 40.0",
            "uvxlan-0 50 %",
            "q quit",
        ] {
            assert!(shown.contains(words), "{words}:\n{shown}");
        }
        let two = shown.find("10.5.2.0/24").unwrap();
        assert!(
            two < shown.find("10.5.1.0/24").unwrap(),
            "most traffic first"
        );
    }

    #[test]
    fn a_pause_and_an_error_are_shown() {
        let shown = screen(
            110,
            30,
            &ViewState {
                paused: true,
                error: Some("no daemon answers".into()),
                scroll: 1,
                ..ViewState::default()
            },
        );
        assert!(
            shown.contains("PAUSED") && shown.contains("no daemon answers"),
            "{shown}"
        );
        assert!(shown.contains("peers 2..2 of 2"), "{shown}");
    }

    #[test]
    fn no_screen_is_too_small() {
        for (width, height) in [(1, 1), (20, 5), (40, 12), (300, 100)] {
            screen(width, height, &ViewState::default());
        }
    }
}
