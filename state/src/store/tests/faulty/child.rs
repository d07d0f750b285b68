//! The child: it works with a store, and says what it was promised.

use std::{io::Write, sync::atomic::AtomicBool, time::Instant};

use super::*;

/// Which part it plays.
pub(crate) const PART: &str = "FUSEBOX_FAULTY_PART";
/// The folder above the store.
pub(crate) const DIR: &str = "FUSEBOX_FAULTY_DIR";
/// Milliseconds after which it gives up waiting for a store that is down; it goes on for ever without.
pub(crate) const GIVES_UP: &str = "FUSEBOX_FAULTY_GIVES_UP";

/// One write to standard output, so that a trace has the line in one piece.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@ {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn listed(calls: &[FoundCall]) -> String {
    calls.iter().map(|call| format!(" {}", call.seq)).collect()
}

struct Child {
    store: Store,
    faults: Faults,
    next: u64,
    /// What is there, to its knowledge, with the lengths of what it was asked to append.
    there: BTreeMap<u64, usize>,
    gives_up: Option<Duration>,
    damaged: Arc<AtomicBool>,
}

/// How long it waits for anything.
fn patience() -> Option<Duration> {
    let given = std::env::var(GIVES_UP).ok()?;
    Some(Duration::from_millis(given.parse().unwrap()))
}

impl Child {
    /// Opens the store, again and again if the disk refuses.
    fn open(dir: &Path) -> Self {
        let since = Instant::now();
        let damaged = Arc::new(AtomicBool::new(false));
        let faults = Faults::armed();
        let settings = StoreSettings {
            unix_now: Arc::new(|| {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                UnixMillis::new(u64::try_from(now.as_millis()).unwrap_or_default())
            }),
            on_event: Arc::new({
                let damaged = Arc::clone(&damaged);
                move |event| match event {
                    StoreEvent::Reopened { calls } => tell(&format!("={}", listed(&calls))),
                    StoreEvent::Found { findings } => {
                        let damage: Vec<_> = findings.iter().filter(|it| it.is_damage()).collect();
                        if !damage.is_empty() {
                            damaged.store(true, Relaxed);
                            tell(&format!("! {damage:?}"));
                        }
                    }
                    StoreEvent::Refusing { reason } => tell(&format!("down {reason}")),
                    StoreEvent::Rebuilt { .. } | StoreEvent::Accepting => {}
                }
            }),
            faults: faults.clone(),
            ..settings(dir)
        };
        loop {
            match Store::open(settings.clone()) {
                Ok(Opened { store, calls, last_seq, findings, .. }) => {
                    let damage: Vec<_> = findings.iter().filter(|it| it.is_damage()).collect();
                    if !damage.is_empty() {
                        tell(&format!("! {damage:?}"));
                    }
                    tell(&format!("={}", listed(&calls)));
                    let there = calls
                        .iter()
                        .map(|call| (call.seq, usize::try_from(call.body_len).unwrap_or_default()));
                    let (there, next) = (there.collect(), last_seq + 1);
                    let gives_up = patience();
                    return Self { store, faults, next, there, gives_up, damaged };
                }
                Err(error) => {
                    tell(&format!("refused {error}"));
                    let given = patience().unwrap_or(PATIENCE);
                    if since.elapsed() > given {
                        tell("gave up");
                        std::process::exit(0);
                    }
                    thread::park_timeout(Duration::from_millis(30));
                }
            }
        }
    }

    /// Asks, and says so; the committing thread gives the answer.
    fn ask(&self, what: String, command: impl FnOnce(Done)) -> mpsc::Receiver<bool> {
        let (sender, receiver) = mpsc::channel();
        tell(&format!("> {what}"));
        command(Box::new(move |result| {
            let answer = match &result {
                Ok(()) => "ok",
                Err(error) if error.outcome_unknown() => "maybe",
                Err(_) => "no",
            };
            tell(&format!("< {answer} {what}"));
            sender.send(result.is_ok()).unwrap_or_default();
        }));
        receiver
    }

    /// Waits for an answer, and then for the store to be up.
    fn answer(&self, receiver: mpsc::Receiver<bool>) -> bool {
        let answer = receiver.recv_timeout(PATIENCE).expect("no answer");
        let since = Instant::now();
        while self.store.status().refusing.is_some() {
            if since.elapsed() > self.gives_up.unwrap_or(PATIENCE) {
                tell("gave up");
                std::process::exit(if self.gives_up.is_some() { 0 } else { 3 });
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        answer
    }

    fn append(&mut self, length: usize) -> (u64, mpsc::Receiver<bool>) {
        let seq = self.next;
        self.next += 1;
        let call = call(seq, &content(seq, length));
        self.there.insert(seq, length);
        (seq, self.ask(format!("a {seq} {length}"), |done| self.store.append(call, done)))
    }

    fn appended(&mut self, lengths: &[usize]) {
        let asked: Vec<_> = lengths.iter().map(|length| self.append(*length)).collect();
        for (seq, receiver) in asked {
            if !self.answer(receiver) {
                self.there.remove(&seq);
            }
        }
    }

    /// The n-th of those that are there.
    fn pick(&self, n: usize) -> Option<u64> {
        self.there.keys().nth(n % self.there.len().max(1)).copied()
    }

    fn read(&self, seq: u64) {
        let result = match self.store.body(seq) {
            Ok(body) => format!("sum {}", crc32fast::hash(&body)),
            Err(error) => format!("{error:?}"),
        };
        tell(&format!("r {seq} {result}"));
    }

    fn beside(&self, verb: &str, seq: u64) {
        let store = &self.store;
        let dead = mark(DeadReason::Rejected);
        let receiver = self.ask(format!("{verb} {seq}"), |done| match verb {
            "n" => store.note_sending(seq, &noted(9), done),
            "t" => store.take_back_note(seq, done),
            "v" => store.revive(&[seq], done),
            _ => store.bury(seq, dead, done),
        });
        self.answer(receiver);
    }

    fn remove(&mut self, seqs: &[u64]) {
        // A disk that failed may have left nothing to remove.
        if seqs.is_empty() {
            return;
        }
        let names: Vec<String> = seqs.iter().map(u64::to_string).collect();
        let what = format!("x {}", names.join(","));
        let receiver = self.ask(what, |done| self.store.remove(seqs.to_vec(), done));
        if self.answer(receiver) {
            self.there.retain(|seq, _| !seqs.contains(seq));
        }
    }

    fn requeue(&mut self, old: u64) {
        let new = self.next;
        self.next += 1;
        let receiver =
            self.ask(format!("q {old} {new}"), |done| self.store.requeue(old, new, false, done));
        if self.answer(receiver)
            && let Some(length) = self.there.remove(&old)
        {
            self.there.insert(new, length);
        }
    }

    fn replace(&mut self, seq: u64, length: usize) {
        let traits = Traits::residue(UnixMillis::new(seq));
        let residue = call_with(seq, traits, &content(seq + 1_000_000, length));
        let what = format!("p {seq} {length}");
        let receiver = self.ask(what, |done| self.store.replace(&residue, done));
        if self.answer(receiver) {
            self.there.insert(seq, length);
        }
    }

    fn fact(&self, name: &'static str, value: u64) {
        let receiver = self.ask(format!("f {name} {value}"), |done| {
            self.store.put_fact(name, value.to_string().into_bytes(), done);
        });
        self.answer(receiver);
    }

    /// Everything that a store is asked in service.
    fn serve(&mut self, rounds: u64) {
        for round in 0..rounds {
            let at = usize::try_from(round).unwrap_or_default();
            self.appended(&[150]);
            self.appended(&[200, 30, if round % 3 == 0 { 9_000 } else { 700 }, 3_000]);
            if let Some(seq) = self.pick(at * 7) {
                self.beside("n", seq);
                self.read(seq);
                if round % 2 == 0 {
                    self.beside("t", seq);
                }
            }
            if let Some(seq) = self.pick(at * 5 + 1) {
                self.beside("b", seq);
                match round % 3 {
                    0 => self.requeue(seq),
                    1 => self.beside("v", seq),
                    _ => {}
                }
            }
            if let Some(seq) = self.pick(at * 3 + 2).filter(|_| round % 2 == 0) {
                self.replace(seq, 60);
            }
            self.fact("breaker", round);
            self.store.add_history(vec![7; 100]);
            let some: Vec<u64> = [0, at, at * 2].iter().filter_map(|n| self.pick(*n)).collect();
            let some: std::collections::BTreeSet<u64> = some.into_iter().collect();
            self.remove(&some.into_iter().collect::<Vec<_>>());
        }
    }

    /// Reads, notes and removes whatever is there, as replay does.
    fn replay(&mut self, most: usize) {
        let all: Vec<u64> = self.there.keys().copied().take(most).collect();
        for pair in all.chunks(2) {
            for seq in pair {
                self.read(*seq);
            }
            if let Some(first) = pair.first() {
                self.beside("n", *first);
            }
            self.remove(pair);
        }
    }

    fn rebuild(&mut self) {
        self.appended(&[100, 5_000]);
        self.faults.fail_sync(1);
        self.appended(&[300]);
        self.appended(&[301]);
        self.compact();
        self.appended(&[302]);
    }

    fn compact(&mut self) {
        let receiver = self.ask("c".into(), |done| self.store.compact(done));
        self.answer(receiver);
    }

    fn end(self, closes: bool) {
        // Whatever was wrong has passed: it serves.
        let mut this = self;
        this.appended(&[10]);
        this.appended(&[11]);
        let seqs: Vec<u64> = this.there.keys().copied().collect();
        for seq in seqs {
            this.read(seq);
        }
        if closes {
            this.store.close();
        }
        tell("end");
        std::process::exit(i32::from(this.damaged.load(Relaxed)));
    }
}

fn play(part: &str, dir: &Path) {
    let mut child = Child::open(dir);
    match part {
        "open" => {}
        "fill" => child.serve(6),
        "fill-large" => {
            for _ in 0..60 {
                child.appended(&[10_000; 40]);
            }
        }
        "serve" => {
            child.serve(3);
            child.replay(6);
        }
        "serve-long" => {
            child.serve(40);
            child.replay(30);
        }
        "replay" => child.replay(14),
        "rebuild" => child.rebuild(),
        "compact" => child.compact(),
        other => panic!("{other} is no part"),
    }
    let closes = !part.starts_with("fill");
    child.end(closes);
}

/// Ends at once if it is run as a test. It works on a thread of its own: strace counts the calls of each thread,
/// and the first one has made some before.
#[test]
fn plays_its_part() {
    let (Some(part), Some(dir)) = (std::env::var_os(PART), std::env::var_os(DIR)) else { return };
    // As the daemon's own hook does.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_guarded() {
            usual(panic);
        }
    }));
    let played = thread::spawn(move || play(&part.to_string_lossy(), Path::new(&dir)));
    played.join().unwrap();
}
