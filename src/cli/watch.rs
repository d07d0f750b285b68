//! `fusebox status --watch`: the status as it changes, on the whole terminal.
//!
//! ```text
//!   poll, every second --+
//!   stream of events ----+--> Seen (what is known) --> draw
//!   keys, in a thread ---+
//!   SIGTERM, SIGHUP -----+--> end
//! ```
//!
//! A daemon that is gone or does not answer is a state to be shown, not an error: what was last seen stays,
//! and both sources go on asking. The terminal is given back on every way out: by the guard's drop if the
//! command ends or is cancelled, by ratatui's panic hook before the message of a panic.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fusebox_actors::view::{ExplainView, ResilienceView};
use fusebox_state::system::SystemState;
use http_body_util::BodyExt;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::terminal::{
    client::{Client, segment},
    events::Reader,
    failure::{Done, Failure},
    print::say_while_read,
    views::{EventView, PastView, read},
};
use seen::{Outlook, Seen};

mod screen;
mod seen;

/// How often the daemon is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the keys' thread looks whether it is still wanted.
const KEYS_LOOK: Duration = Duration::from_millis(100);
/// What is watched.
const VIEW: &str = "/health/resilience";
/// Events of the past that are shown.
const PAST: usize = 50;

/// What the sources tell.
enum Told {
    /// The daemon's view, or why there is none.
    View(Result<Box<ResilienceView>, String>),
    /// A backend's explanation.
    Explained(String, Box<ExplainView>),
    /// Something that happened, or happened before.
    Event(Box<EventView>),
    /// A key, or that there will be none any more.
    Key(Option<KeyEvent>),
    /// The terminal has another size.
    Resized,
}

/// `fusebox status --watch`; with `exit_code` its exit code is that of the last state.
pub(crate) async fn run(client: &Arc<Client>, exit_code: bool) -> Done {
    use std::io::IsTerminal;
    if !crate::terminal::print::on_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "--watch needs a terminal; --watch --json prints a line a second anywhere",
        ));
    }
    let (sender, mut told) = mpsc::channel(256);
    let (select, selected) = watch::channel(None);
    let mut sources = JoinSet::new();
    sources.spawn(poll(Arc::clone(client), selected, sender.clone()));
    sources.spawn(listen(Arc::clone(client), sender.clone()));
    let heard = |kind| {
        signal(kind).map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))
    };
    let (mut terminated, mut hung_up) =
        (heard(SignalKind::terminate())?, heard(SignalKind::hangup())?);
    let mut terminal = Terminal::take()?;
    let _keys = Keys::read(sender);
    let mut seen = Seen::default();
    // What was last seen grows older even if nothing arrives.
    let mut tick = tokio::time::interval(EVERY);
    loop {
        terminal.draw(&seen)?;
        let news = tokio::select! {
            news = told.recv() => news,
            _ = tick.tick() => continue,
            _ = terminated.recv() => return Ok(ExitCode::from(143)),
            _ = hung_up.recv() => return Ok(ExitCode::from(129)),
        };
        match news {
            Some(Told::View(Ok(view))) => seen.view(*view),
            Some(Told::View(Err(why))) => seen.lost(why),
            Some(Told::Explained(backend, view)) => seen.explained(backend, *view),
            Some(Told::Event(event)) => seen.event(*event),
            Some(Told::Key(Some(key))) => match meaning(key) {
                Some(Meaning::Quit) => return Ok(last_of(&seen, exit_code)),
                Some(Meaning::Move(step)) => seen.select(step),
                Some(Meaning::Panic) => panic_for_test(),
                None => {}
            },
            Some(Told::Resized) => {}
            Some(Told::Key(None)) | None => return Ok(last_of(&seen, exit_code)),
        }
        select.send_if_modified(|selected| {
            let now = seen.selected().map(|(_, name)| name);
            std::mem::replace(selected, now.clone()) != now
        });
    }
}

/// The exit code of what was last seen, if it is asked for.
fn last_of(seen: &Seen, exit_code: bool) -> ExitCode {
    // A daemon that is gone is as bad as any state.
    let view = seen.view.as_ref().filter(|_| seen.lost.is_none());
    let state = view.and_then(|view| view.state.known()).unwrap_or(SystemState::Emergency);
    ExitCode::from(if exit_code { state.severity() } else { 0 })
}

/// `fusebox status --watch --json`: an object a line, every second, until nobody reads any more. If there
/// is no daemon its line says so.
pub(crate) async fn lines(client: &Client, exit_code: bool) -> Done {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut severity = SystemState::Emergency.severity();
        let line = match ask(client, VIEW).await {
            Ok(view) => {
                let state =
                    view.get("state").and_then(|state| SystemState::deserialize(state).ok());
                severity = state.unwrap_or(SystemState::Emergency).severity();
                view
            }
            Err(why) => {
                let now = fusebox_actors::Clock::system().unix();
                json!({ "at": now, "state": null, "error": why })
            }
        };
        if !say_while_read(&format!("{line}\n"))? {
            return Ok(ExitCode::from(if exit_code { severity } else { 0 }));
        }
    }
}

/// What `path` shows.
async fn view<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Box<T>, String> {
    let answer = ask(client, path).await?;
    read(&answer).map(Box::new).map_err(|failure| failure.to_string())
}

async fn ask(client: &Client, path: &str) -> Result<Value, String> {
    match tokio::time::timeout(PATIENCE, client.get(path)).await {
        Ok(answer) => answer.map_err(|failure| failure.to_string()),
        Err(_) => Err(format!("the daemon did not answer within {} s", PATIENCE.as_secs())),
    }
}

/// Asks for the view every second, and for the selected backend's story with it or as it is selected.
async fn poll(
    client: Arc<Client>,
    mut selected: watch::Receiver<Option<String>>,
    told: mpsc::Sender<Told>,
) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                if told.send(Told::View(view(&client, VIEW).await)).await.is_err() {
                    return;
                }
            }
            changed = selected.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        let backend = selected.borrow_and_update().clone();
        let Some(backend) = backend else { continue };
        let Ok(name) = segment(&backend) else { continue };
        if let Ok(story) = view(&client, &format!("/v1/backends/{name}/explain")).await
            && told.send(Told::Explained(backend, story)).await.is_err()
        {
            return;
        }
    }
}

/// Tells what happened and what happens, for as long as there is a daemon, and again once there is one.
async fn listen(client: Arc<Client>, told: mpsc::Sender<Told>) {
    let mut again = tokio::time::interval(EVERY);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        again.tick().await;
        if follow(&client, &told).await.is_none() {
            return;
        }
    }
}

/// Follows until the stream ends; `None` if nobody listens any more.
async fn follow(client: &Client, told: &mpsc::Sender<Told>) -> Option<()> {
    // The stream first: what happens in between is in both, and is recognised by its number.
    let Ok(mut body) = client.stream("/v1/events").await else { return Some(()) };
    if let Ok(past) = ask(client, &format!("/v1/history?limit={PAST}")).await
        && let Ok(past) = PastView::of(past)
    {
        for event in past.events {
            told.send(Told::Event(Box::new(EventView::of(&event)))).await.ok()?;
        }
    }
    let mut reader = Reader::default();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        for event in reader.read(&data) {
            told.send(Told::Event(Box::new(EventView::of(&event)))).await.ok()?;
        }
    }
    Some(())
}

/// What a key is for.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Quit,
    Move(Outlook),
    Panic,
}

fn meaning(key: KeyEvent) -> Option<Meaning> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if control => Meaning::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Meaning::Quit,
        KeyCode::Down | KeyCode::Right | KeyCode::Tab | KeyCode::Char('j') => {
            Meaning::Move(Outlook::Next)
        }
        KeyCode::Up | KeyCode::Left | KeyCode::BackTab | KeyCode::Char('k') => {
            Meaning::Move(Outlook::Previous)
        }
        KeyCode::Char('!') if std::env::var("FUSEBOX_TEST_HOOKS").is_ok_and(|it| it == "1") => {
            Meaning::Panic
        }
        _ => return None,
    })
}

#[expect(clippy::panic, reason = "a test looks at what a panic leaves of the terminal")]
fn panic_for_test() {
    panic!("told to panic by a test");
}

/// The terminal while it is ours.
struct Terminal(Option<DefaultTerminal>);

impl Terminal {
    fn take() -> Result<Self, Failure> {
        let taken = ratatui::try_init();
        Ok(Self(Some(
            taken.map_err(|error| Failure::failed(format!("cannot use the terminal: {error}")))?,
        )))
    }

    fn draw(&mut self, seen: &Seen) -> Result<(), Failure> {
        let Some(terminal) = &mut self.0 else { return Ok(()) };
        let now = fusebox_actors::Clock::system().unix();
        let drawn = terminal.draw(|frame| screen::draw(frame, seen, now));
        drawn.map(drop).map_err(|error| Failure::failed(format!("cannot draw: {error}")))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its own drop shows the cursor again, on the screen that is still ours.
        drop(self.0.take());
        ratatui::restore();
    }
}

/// Reads keys in a thread of its own, which ends soon after this is dropped.
struct Keys(Arc<AtomicBool>);

impl Keys {
    fn read(told: mpsc::Sender<Told>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        drop(std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let news = match event::poll(KEYS_LOOK) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let news = match news {
                    Ok(event::Event::Key(key)) => Told::Key(Some(key)),
                    Ok(event::Event::Resize(..)) => Told::Resized,
                    Ok(_) => continue,
                    Err(_) => Told::Key(None),
                };
                let last = matches!(news, Told::Key(None));
                if told.blocking_send(news).is_err() || last {
                    return;
                }
            }
        }));
        Self(ended)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let plain = |code| meaning(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(plain(KeyCode::Char('q')), Some(Meaning::Quit));
        assert_eq!(plain(KeyCode::Esc), Some(Meaning::Quit));
        assert_eq!(plain(KeyCode::Char('c')), None);
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(meaning(control), Some(Meaning::Quit));
        assert_eq!(plain(KeyCode::Down), Some(Meaning::Move(Outlook::Next)));
        assert_eq!(plain(KeyCode::Up), Some(Meaning::Move(Outlook::Previous)));
        assert_eq!(plain(KeyCode::Char('!')), None, "a test's hook alone");
    }
}
