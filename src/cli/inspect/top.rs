//! `uvxlan top`: shows the running daemon live in a terminal.

mod model;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::{Model, Sample, ThreadTicks};
use self::view::ViewState;
use super::socket::{Socket, unanswered};
use crate::cli::{FAILURE, OK, USAGE, fail, seconds};
use crate::control::Status;

/// Longest wait for a key while a reply is pending.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The screen says how long the daemon has not answered once it is this long.
const SLOW_AFTER: Duration = Duration::from_secs(2);

/// Arguments of `uvxlan top`.
#[derive(clap::Args, Debug)]
pub(crate) struct TopArgs {
    /// Seconds between two updates
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds(0.1..=60.0))]
    interval: f64,
    #[command(flatten)]
    socket: Socket,
}

/// Runs until `q` or Ctrl-C.
pub(crate) fn run(args: &TopArgs) -> ExitCode {
    if !std::io::stdout().is_terminal() {
        let error = "needs a terminal; for programs there is uvxlan status --json";
        return fail("top", USAGE, error);
    }
    let first = match args.socket.status() {
        Ok(status) => status,
        Err(error) => return unanswered("top", &error),
    };
    // Restores the terminal after a panic too.
    let mut terminal = ratatui::init();
    let result = watch(args, first, &mut terminal);
    ratatui::restore();
    match result {
        Ok(()) => ExitCode::from(OK),
        Err(error) => fail("top", FAILURE, error),
    }
}

fn watch(
    args: &TopArgs,
    first: Status,
    terminal: &mut ratatui::DefaultTerminal,
) -> std::io::Result<()> {
    let start = Instant::now();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let interval = Duration::from_secs_f64(args.interval);
    let mut model = Model::default();
    model.update(sample(first, start), ticks);
    let mut view = ViewState::default();
    let (requests, samples) = sample_in_thread(args.socket.clone(), start);
    let mut due = Instant::now() + interval;
    let mut requested: Option<Instant> = None;
    loop {
        terminal.draw(|frame| view::draw(frame, &model, &view))?;
        let now = Instant::now();
        let next = match requested {
            Some(_) => POLL_INTERVAL,
            None => due.saturating_duration_since(now).min(interval),
        };
        if event::poll(next)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && quits_by(key, &mut view, model.peers.len())
        {
            return Ok(());
        }
        match (samples.try_recv(), requested) {
            (Ok(sample), _) => {
                requested = None;
                due = due.max(Instant::now());
                // A paused screen does not change, whatever arrives.
                if !view.paused {
                    match sample {
                        Ok(sample) => {
                            view.error = None;
                            model.update(sample, ticks);
                        }
                        // The daemon may be restarting, so go on.
                        Err(error) => view.error = Some(error),
                    }
                }
            }
            (Err(_), Some(since)) if since.elapsed() >= SLOW_AFTER && !view.paused => {
                let seconds = since.elapsed().as_secs();
                view.error = Some(format!("the daemon has not answered for {seconds} s"));
            }
            _ => {}
        }
        if requested.is_none() && !view.paused && Instant::now() >= due {
            due = Instant::now() + interval;
            if requests.send(()).is_ok() {
                requested = Some(Instant::now());
            }
        }
    }
}

fn sample(status: Status, start: Instant) -> Sample {
    Sample {
        threads: thread_ticks(status.pid),
        status,
        at: start.elapsed(),
    }
}

/// Starts a thread that takes one sample for each request, so that keys work while the daemon is
/// slow. It ends with the sender.
fn sample_in_thread(
    socket: Socket,
    start: Instant,
) -> (Sender<()>, Receiver<Result<Sample, String>>) {
    let (requests, requested) = channel();
    let (sender, samples) = channel();
    thread::spawn(move || {
        while let Ok(()) = requested.recv() {
            let status = socket.status().map_err(|error| error.to_string());
            if sender
                .send(status.map(|status| sample(status, start)))
                .is_err()
            {
                return;
            }
        }
    });
    (requests, samples)
}

/// Handles a key; returns whether it quits.
fn quits_by(key: KeyEvent, view: &mut ViewState, peers: usize) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if control => return true,
        KeyCode::Char('p') => view.paused = !view.paused,
        KeyCode::Char('s') => view.order = view.order.next(),
        KeyCode::Down => view.scroll += 1,
        KeyCode::Up => view.scroll = view.scroll.saturating_sub(1),
        KeyCode::PageDown => view.scroll += 10,
        KeyCode::PageUp => view.scroll = view.scroll.saturating_sub(10),
        _ => {}
    }
    view.scroll = view.scroll.min(peers.saturating_sub(1));
    false
}

/// CPU time of the daemon's packet threads, if `/proc` shows them.
fn thread_ticks(pid: u32) -> ThreadTicks {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut threads: ThreadTicks = tasks
        .flatten()
        .filter_map(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            // proc_pid_stat(5): the name in parentheses, then the other fields.
            let (head, fields) = stat.rsplit_once(')')?;
            let name = head.split_once('(')?.1.to_owned();
            let mut fields = fields.split_ascii_whitespace().skip(11);
            let user: u64 = fields.next()?.parse().ok()?;
            let system: u64 = fields.next()?.parse().ok()?;
            name.starts_with("uvxlan-").then_some((name, user + system))
        })
        .collect();
    threads.sort();
    threads
}
