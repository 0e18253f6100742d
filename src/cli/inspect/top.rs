//! `uvxlan top`: the running daemon, live in a terminal.

mod model;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::{Look, Model, Order, ThreadTicks};
use self::view::Choice;
use super::status::{Socket, failed};
use crate::control::Status;

/// Longest time between two looks at keys and answers.
const POLL: Duration = Duration::from_millis(50);
/// After so long without an answer it is said so.
const SLOW: Duration = Duration::from_secs(2);

/// Arguments of `uvxlan top`.
#[derive(clap::Args, Debug, Clone)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    #[command(flatten)]
    socket: Socket,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.1..=60.0).contains(&value) => Ok(value),
        _ => Err("0.1 to 60 seconds are possible".into()),
    }
}

/// Runs until `q` or Ctrl-C.
#[must_use]
pub fn run(args: &TopArgs) -> ExitCode {
    if !std::io::stdout().is_terminal() {
        crate::cli::print_err(
            "uvxlan top: needs a terminal; uvxlan status --json is for programs\n",
        );
        return ExitCode::from(crate::cli::USAGE);
    }
    let first = match args.socket.status() {
        Ok(status) => status,
        Err(error) => return failed("top", &error),
    };
    // Puts the terminal back in order also after a panic.
    let mut terminal = ratatui::init();
    let outcome = watch(args, first, &mut terminal);
    ratatui::restore();
    match outcome {
        Ok(()) => ExitCode::from(crate::cli::OK),
        Err(error) => {
            crate::cli::print_err(&format!("uvxlan top: {error}\n"));
            ExitCode::from(crate::cli::FAILURE)
        }
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
    model.take(look(first, start), ticks);
    let mut choice = Choice {
        order: Order::Traffic,
        paused: false,
        scroll: 0,
        trouble: None,
    };
    let (questions, answers) = ask_aside(args.socket.clone(), start);
    let mut due = Instant::now() + interval;
    let mut asked: Option<Instant> = None;
    loop {
        terminal.draw(|frame| view::draw(frame, &model, &choice))?;
        let now = Instant::now();
        let next = match asked {
            Some(_) => POLL,
            None => due.saturating_duration_since(now).min(interval),
        };
        if event::poll(next)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && key_ends(key, &mut choice, model.peers.len())
        {
            return Ok(());
        }
        match (answers.try_recv(), asked) {
            (Ok(answer), _) => {
                asked = None;
                due = due.max(Instant::now());
                // What is paused stands still, whatever comes.
                if !choice.paused {
                    match answer {
                        Ok(look) => {
                            choice.trouble = None;
                            model.take(look, ticks);
                        }
                        // A daemon that restarts comes back.
                        Err(error) => choice.trouble = Some(error),
                    }
                }
            }
            (Err(_), Some(since)) if since.elapsed() >= SLOW && !choice.paused => {
                let seconds = since.elapsed().as_secs();
                choice.trouble = Some(format!("the daemon has not answered for {seconds} s"));
            }
            _ => {}
        }
        if asked.is_none() && !choice.paused && Instant::now() >= due {
            due = Instant::now() + interval;
            if questions.send(()).is_ok() {
                asked = Some(Instant::now());
            }
        }
    }
}

/// What one look at the daemon found.
fn look(status: Status, start: Instant) -> Look {
    Look {
        threads: thread_ticks(status.pid),
        status,
        at: start.elapsed(),
    }
}

/// Asks in a thread of its own, once for each question: keys are heard while a daemon is slow.
/// It ends with the sender.
fn ask_aside(socket: Socket, start: Instant) -> (Sender<()>, Receiver<Result<Look, String>>) {
    let (questions, asked) = channel();
    let (answer, answers) = channel();
    thread::spawn(move || {
        while let Ok(()) = asked.recv() {
            let found = socket.status();
            let found = found.map(|status| look(status, start));
            if answer
                .send(found.map_err(|error| error.to_string()))
                .is_err()
            {
                return;
            }
        }
    });
    (questions, answers)
}

/// Does what a key says; whether it says to end.
fn key_ends(key: KeyEvent, choice: &mut Choice, peers: usize) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if control => return true,
        KeyCode::Char('p') => choice.paused = !choice.paused,
        KeyCode::Char('s') => choice.order = choice.order.next(),
        KeyCode::Down => choice.scroll += 1,
        KeyCode::Up => choice.scroll = choice.scroll.saturating_sub(1),
        KeyCode::PageDown => choice.scroll += 10,
        KeyCode::PageUp => choice.scroll = choice.scroll.saturating_sub(10),
        _ => {}
    }
    choice.scroll = choice.scroll.min(peers.saturating_sub(1));
    false
}

/// CPU time of the daemon's packet threads, where `/proc` shows them.
fn thread_ticks(pid: u32) -> ThreadTicks {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut threads: ThreadTicks = tasks
        .flatten()
        .filter_map(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            // proc_pid_stat(5): the name in parentheses, then fields from the state on.
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
