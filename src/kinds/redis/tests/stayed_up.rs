//! Random writes with short times to live: after the replay, and in every overlay read, what fusebox's server
//! holds is what a second server holds that was never away.
//!
//! Each sequence has three keys of its own. Its writes run on the second server at once and are live or
//! queued for the first. A sequence in which anything happened within [`MARGIN`] of a deadline proves
//! nothing, as neither order would be wrong; it is left out, and counted.
//!
//! Two kinds of sequence, which are what is promised:
//!
//! - *queued*: every deadline is set by a queued write, and the replay begins when all are queued. Any command.
//!   But for two, behind a transaction that is refused in part: a GETEX, GETSET, GETDEL or SET with GET that is refused
//!   too leaves a key for a week at most; and a key that the transaction gave a deadline ends then, also if a write
//!   that was to meet it, and leaves the deadline as it is, has not been replayed by then.
//! - *live*: deadlines go live, and so do those that an early replay sends; the server counts those down itself.
//!   So a queued write cannot prolong one (PERSIST, EXPIRE) or find the key by a condition (NX, XX) after
//!   it has passed there. Commands that change a key, move it or set it as a whole; nothing is moved onto a
//!   key from one that is not there.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{line::Line, *};
use crate::kinds::redis::protocol::internal::{self, Step};

const MARGIN: u64 = 70;

const QUEUED: [&str; 54] = [
    "SET a V",
    "SET a V PX T",
    "SET b V PX T",
    "PSETEX a T V",
    "SET a V KEEPTTL",
    "SET a V NX PX T",
    "SET a V XX",
    "SET a V XX PX T",
    "SET a V GET",
    "SET a V PXAT @T",
    "PEXPIRE a T",
    "PEXPIRE b T",
    "PEXPIRE a T NX",
    "PEXPIRE a T XX",
    "PEXPIREAT a @T",
    "PERSIST a",
    "DEL a",
    "UNLINK b",
    "APPEND a V",
    "SETRANGE a 0 V",
    "INCR a",
    "HSET a f V",
    "HSET b f V",
    "HDEL a f",
    "RPUSH a V",
    "LPOP a",
    "SADD a V",
    "SREM a V",
    "ZADD a 1 V",
    "RENAME a b",
    "RENAME b c",
    "RENAME c a",
    "RENAMENX a c",
    "COPY a b",
    "COPY b a REPLACE",
    "GETDEL a",
    "GETEX a PX T",
    "GETEX a PERSIST",
    "MSET a V b V",
    "SETNX a V",
    "GETSET a V",
    "LMOVE a b LEFT RIGHT",
    "SUNIONSTORE a b c",
    "BITOP NOT a b",
    "EXPIRE a 1",
    "MULTI ; SET a V PX T ; SET b V",
    "MULTI ; HSET a f V ; PEXPIRE a T",
    "MULTI ; SET a V PX T ; PERSIST a",
    "MULTI ; SET a V PX T ; EXPIRE b 1 ; SADD c V",
    "MULTI ; SET b V PX T ; EXPIRE a 1 ; MSET c V a V",
    "MULTI ; DEL a ; HSET a f V ; PEXPIRE b T",
    "MULTI ; SET a V KEEPTTL ; SETBIT b 3 1",
    "MULTI ; PSETEX a T V ; SETRANGE a 0 V ; EXPIRE c 1",
    "MULTI ; SET c V PX T",
];
const LIVE: [&str; 9] = [
    "SET a V PX T",
    "SET a 5",
    "PEXPIRE a T",
    "PEXPIRE b T",
    "HSET b f V",
    "RPUSH c V",
    "PEXPIRE c T",
    "RENAME a c",
    "DEL b",
];
const AFTER_LIVE: [&str; 19] = [
    "SET a V",
    "SET b V PX T",
    "PSETEX a T V",
    "SET a V KEEPTTL",
    "DEL a",
    "UNLINK b",
    "APPEND a V",
    "SETRANGE a 0 V",
    "INCR a",
    "HSET b g V",
    "HINCRBY b n 1",
    "RPUSH c V",
    "SADD b V",
    "ZADD a 1 V",
    "RENAME a b",
    "RENAME c a",
    "COPY b a REPLACE",
    "MSET a V c V",
    "SETBIT a 9 1",
];

/// The words of a pattern: keys of the sequence, values, and times to live of 0.2 to 3 s.
fn filled(
    random: &mut fastrand::Rng,
    pattern: &str,
    sequence: usize,
    carried: &mut Vec<u64>,
) -> Vec<String> {
    let ttl = random.u64(200..3000);
    if pattern.contains('T') && pattern.split(' ').any(|word| word == "T" || word == "@T") {
        carried.push(now().get() + ttl);
    }
    if pattern.contains(" EXPIRE") || pattern.starts_with("EXPIRE") {
        carried.push(now().get() + 1000);
    }
    let word = |word: &str| match word {
        "a" | "b" | "c" => format!("{word}{sequence}"),
        "V" => random.u32(0..1000).to_string(),
        "T" => ttl.to_string(),
        "@T" => (now().get() + ttl).to_string(),
        word => word.to_owned(),
    };
    pattern.split(' ').map(word).collect()
}

struct Two<'a> {
    ours: &'a Server,
    theirs: &'a Server,
    redis: &'a RedisConnector,
}

/// What happened in a sequence, to be shown if it fails.
struct Sequence<'a> {
    two: &'a Two<'a>,
    number: usize,
    line: Line<'a>,
    carried: Vec<u64>,
    told: Vec<String>,
    begun: u64,
    tainted: bool,
    /// A transaction was refused in part.
    refused_in_part: bool,
    overlaid: usize,
}

impl Sequence<'_> {
    fn note(&mut self, what: &str) {
        self.told.push(format!("{:>5} {what}", now().get() - self.begun));
    }

    /// Taints the sequence if what happened since `from` was near a deadline.
    fn check(&mut self, from: u64) {
        let (from, to) = (from - MARGIN, now().get() + MARGIN);
        self.tainted |= self.carried.iter().any(|at| (from..=to).contains(at));
    }

    async fn write(&mut self, pattern: &str, random: &mut fastrand::Rng, live: bool) {
        let (from, is_behind_one) = (now(), self.refused_in_part);
        let command = filled(random, pattern, self.number, &mut self.carried);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        if self.number.is_multiple_of(2) && matches!(words[0], "RENAME" | "COPY") {
            let source = self.two.theirs.ask(&["EXISTS", words[1]]).await;
            if source == ":0\r\n" {
                return;
            }
        }
        let (body, said) = if words[0] == "MULTI" {
            let commands: Vec<&[&str]> = words.split(|word| *word == ";").skip(1).collect();
            let all = [&[&["MULTI"][..]], &commands[..], &[&["EXEC"][..]]].concat();
            let said = self.two.theirs.ask_all(&all).await;
            self.refused_in_part |= said.windows(4).any(|said| said == b"\n-WR");
            let bodies: Vec<Bytes> = commands.iter().map(|words| resp::command(words)).collect();
            let steps = bodies
                .iter()
                .map(|body| Step { args: resp::arguments(body).unwrap(), deadlines: Vec::new() });
            let steps: Vec<Step<'_>> = steps.collect();
            (internal::multi(&steps), Bytes::from_static(b"a transaction"))
        } else {
            (resp::command(&words), self.two.theirs.ask(&words).await)
        };
        // Slower than that, the deadline of the one server is not the other's.
        self.tainted |= now().get() - from.get() > MARGIN / 3;
        self.tainted |= self.refused_in_part
            && said.starts_with(b"-WRONGTYPE")
            && (words[0].starts_with("GET") || words[0] == "SET");
        if is_behind_one {
            self.tainted |= self.keeps_a_deadline(&words).await;
        }
        self.note(&format!(
            "{} {} → {}",
            if live { "live" } else { "queue" },
            command.join(" "),
            String::from_utf8_lossy(&said).trim()
        ));
        if live && !self.line.occupied(&body) {
            let with = With { accepted: from, timeout: testing::PATIENCE, ..With::default() };
            drop(call_with(self.two.redis, body, with).await);
            self.tainted |= now().get() - from.get() > MARGIN / 3;
        } else {
            self.line.accept(body, from);
        }
        self.check(from.get());
    }

    /// Whether one of the keys in `words`, which were just written, still has a deadline.
    async fn keeps_a_deadline(&self, words: &[&str]) -> bool {
        for key in ["a", "b", "c"].map(|key| format!("{key}{}", self.number)) {
            if words.contains(&&*key) {
                let left = self.two.theirs.ask(&["PTTL", &key]).await;
                if !left.starts_with(b":-") {
                    return true;
                }
            }
        }
        false
    }

    async fn read(&mut self, key: &str) {
        let from = now().get();
        for name in ["GET", "EXISTS"] {
            let words = [name.to_owned(), format!("{key}{}", self.number)];
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let overlaid = self.line.overlay(&resp::command(&words), now());
            let theirs = self.two.theirs.ask(&words).await;
            self.check(from);
            if let Some(overlaid) = overlaid
                && !self.tainted
            {
                self.overlaid += 1;
                let overlaid = if overlaid == "_\r\n" { Bytes::from("$-1\r\n") } else { overlaid };
                assert_eq!(overlaid, theirs, "{words:?}\n{}", self.told.join("\n"));
            }
        }
    }

    async fn step(&mut self) {
        let from = now().get();
        if self.line.len() > 0 {
            self.line.step().await;
            self.note("a step of the replay");
        }
        self.check(from);
    }

    async fn compare(&mut self) {
        let from = now().get();
        let mut differences = Vec::new();
        for key in ["a", "b", "c"] {
            let key = format!("{key}{}", self.number);
            let (mut held, mut left) = (Vec::new(), Vec::new());
            for server in [self.two.ours, self.two.theirs] {
                held.push(server.ask(&["DUMP", &key]).await);
                let reply = server.ask(&["PEXPIRETIME", &key]).await;
                let Some(resp::Reply::Int(ttl)) = resp::Reply::of(&reply) else {
                    panic!("a number")
                };
                left.push(ttl);
            }
            let lasting = left.iter().all(|left| *left >= 0);
            let near =
                if lasting { left[0].abs_diff(left[1]) < MARGIN } else { left[0] == left[1] };
            if held[0] != held[1] || !near {
                differences.push(format!("{key}: {held:?}, {left:?}"));
            }
        }
        self.check(from);
        if !self.tainted {
            assert!(differences.is_empty(), "{differences:?}\n{}", self.told.join("\n"));
        }
    }
}

async fn run(two: &Two<'_>, number: usize, seed: u64, counts: &[AtomicUsize; 3]) {
    let mut random = fastrand::Rng::with_seed(seed);
    let live = number.is_multiple_of(2);
    let queue = Line::new(two.redis, number as u128 + 1);
    let (begun, told) = (now().get(), vec![format!("seed {seed}")]);
    let mut sequence = Sequence {
        two,
        number,
        line: queue,
        carried: vec![],
        told,
        begun,
        tainted: false,
        refused_in_part: false,
        overlaid: 0,
    };
    for _ in 0..random.usize(1..4) {
        let pattern = if live { *random.choice(&LIVE).unwrap() } else { "SET a V" };
        sequence.write(pattern, &mut random, true).await;
    }
    let mut at = Instant::now();
    for _ in 0..random.usize(6..14) {
        at += Duration::from_millis(random.u64(20..420));
        tokio::time::sleep_until(at).await;
        match random.u32(0..10) {
            0..3 => sequence.read(random.choice(["a", "b", "c"]).unwrap()).await,
            3 if live => sequence.step().await,
            _ => {
                let pattern = *random.choice(if live { &AFTER_LIVE[..] } else { &QUEUED }).unwrap();
                sequence.write(pattern, &mut random, false).await;
            }
        }
    }
    // Some deadlines pass between the steps of the replay, and writes come in between.
    while sequence.line.len() > 0 {
        sequence.step().await;
        if random.u32(0..3) == 0 {
            sequence.read(random.choice(["a", "b", "c"]).unwrap()).await;
        }
        if random.u32(0..4) == 0 {
            at = Instant::now() + Duration::from_millis(random.u64(10..300));
            tokio::time::sleep_until(at).await;
        }
    }
    sequence.compare().await;
    counts[0].fetch_add(usize::from(!sequence.tainted), Ordering::Relaxed);
    counts[1].fetch_add(sequence.overlaid, Ordering::Relaxed);
    counts[2].fetch_add(1, Ordering::Relaxed);
}

#[tokio::test]
async fn random_writes_end_as_on_a_server_that_stayed_up() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let sequences = number("FUSEBOX_TEST_SEQUENCES").unwrap_or(40);
    let sequences = usize::try_from(sequences).unwrap();
    let seed = number("FUSEBOX_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("repeat with FUSEBOX_TEST_SEED={seed}");
    let (ours, theirs) = (Server::start().await, Server::start().await);
    let redis = RedisConnector::new(ours.settings("i", "r"));
    reply(redis.ping(Duration::from_secs(2)).await);
    let two = Two { ours: &ours, theirs: &theirs, redis: &redis };
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)];
    let mut random = fastrand::Rng::with_seed(seed);
    // As many at once as leave a machine that is otherwise idle without delays that would taint them.
    for wave in 0.. {
        let numbers = wave * 24..(wave + 1) * 24;
        let wave = numbers.map(|number| run(&two, number, random.u64(..), &counts));
        futures_util::future::join_all(wave.collect::<Vec<_>>()).await;
        let [clean, run] = [0, 2].map(|of: usize| counts[of].load(Ordering::Relaxed));
        if clean >= sequences {
            break;
        }
        assert!(run < 12 * sequences, "{clean} of {run} sequences prove something");
    }
    let [clean, overlaid, _] = counts.map(AtomicUsize::into_inner);
    println!("{clean} sequences prove something, {overlaid} reads were determined");
    assert!(overlaid > clean / 2, "{overlaid} reads were determined");
}
