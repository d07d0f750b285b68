//! The stand-in's data: keys, values, times to live, and the one script that it knows.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::kinds::redis::protocol::{
    residue,
    resp::{write_bulk, write_head, write_line},
    token,
};

#[derive(Debug)]
struct Entry {
    value: Bytes,
    expires: Option<Instant>,
}

/// Keys and their values.
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: HashMap<Bytes, Entry>,
    log: Option<Log>,
    recognised: u64,
}

/// The values that `SET` gave to keys, in the order in which they were given.
#[derive(Debug)]
struct Log {
    sets: Vec<(Bytes, Bytes)>,
    sets_max: usize,
    whole: bool,
}

/// How long the marker of a token lives.
const MARKER_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Ten years: what a clock can hold.
const LIFE_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
const NOT_AN_INTEGER: &str = "-ERR value is not an integer or out of range";

impl Store {
    /// A store that remembers the first `sets_max` values that `SET` gave.
    pub(super) fn with_log(sets_max: usize) -> Self {
        let log = Log { sets: Vec::new(), sets_max, whole: true };
        Self { log: Some(log), ..Self::default() }
    }

    /// The keys and values that were set, in order, as text; `None` without a log, or if more was
    /// set than it holds.
    pub(super) fn log(&self) -> Option<Vec<(String, String)>> {
        let log = self.log.as_ref().filter(|log| log.whole)?;
        Some(log.sets.iter().map(|(key, value)| (text(key), text(value))).collect())
    }

    /// Commands that a marker stopped.
    pub(super) fn recognised(&self) -> u64 {
        self.recognised
    }

    /// Keys and values as text, without the markers of tokens.
    pub(super) fn snapshot(&mut self) -> BTreeMap<String, String> {
        self.sweep();
        let entries = self.entries.iter().filter(|(key, _)| !key.starts_with(b"fusebox:"));
        entries.map(|(key, entry)| (text(key), text(&entry.value))).collect()
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.entries.retain(|_, entry| entry.expires.is_none_or(|expires| expires > now));
    }

    fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries
            .get(key)
            .filter(|entry| entry.expires.is_none_or(|expires| expires > Instant::now()))
    }

    fn put(&mut self, key: &[u8], value: &[u8], expires: Option<Instant>) {
        let value = Bytes::copy_from_slice(value);
        self.entries.insert(Bytes::copy_from_slice(key), Entry { value, expires });
    }

    /// Runs the command `args` and writes its reply.
    pub(super) fn answer(&mut self, args: &[&[u8]], resp3: bool, out: &mut BytesMut) {
        let Some((name, rest)) = args.split_first() else { return };
        let nil = if resp3 { "_" } else { "$-1" };
        let value = |entry: Option<&Entry>, out: &mut BytesMut| match entry {
            Some(entry) => write_bulk(out, &entry.value),
            None => write_line(out, nil),
        };
        match (name.to_ascii_uppercase().as_slice(), rest) {
            (b"GET", [key]) => value(self.get(key), out),
            (b"MGET", keys) => {
                write_head(out, '*', keys.len());
                for key in keys {
                    value(self.get(key), out);
                }
            }
            (b"SET", [key, text, options @ ..]) => self.set(key, text, options, nil, out),
            (b"MSET", pairs) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                for pair in pairs.chunks_exact(2) {
                    if let [key, text] = pair {
                        self.put(key, text, None);
                    }
                }
                write_line(out, "+OK");
            }
            (b"DEL" | b"UNLINK", keys) => {
                self.sweep();
                let gone = keys.iter().filter(|key| self.entries.remove(**key).is_some()).count();
                write_line(out, &format!(":{gone}"));
            }
            (b"EXISTS", keys) => {
                let there = keys.iter().filter(|key| self.get(key).is_some()).count();
                write_line(out, &format!(":{there}"));
            }
            (b"INCR", [key]) => self.add(key, Some(1), out),
            (b"DECR", [key]) => self.add(key, Some(-1), out),
            (b"INCRBY", [key, by]) => self.add(key, number(by), out),
            (b"EXPIRE", [key, time]) => self.expire(key, number(time), 1000, out),
            (b"PEXPIRE", [key, time]) => self.expire(key, number(time), 1, out),
            (b"TTL", [key]) => write_line(out, &format!(":{}", self.left(key, 1000))),
            (b"PTTL", [key]) => write_line(out, &format!(":{}", self.left(key, 1))),
            (b"EVAL", [script, count, rest @ ..]) if *script == token::SCRIPT.as_bytes() => {
                let keys = number(count).and_then(|count| usize::try_from(count).ok());
                match keys.and_then(|keys| rest.split_at_checked(keys)) {
                    Some((keys, args)) => self.carry(keys, args, resp3, out),
                    None => {
                        write_line(out, "-ERR Number of keys can't be greater than number of args");
                    }
                }
            }
            (b"EVAL", [script, count, rest @ ..]) if *script == residue::SCRIPT.as_bytes() => {
                let keys = number(count).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
                let (keys, args) = rest.split_at_checked(keys).unwrap_or_default();
                self.settle(keys, args.get(1).and_then(|left| number(left)));
                write_line(out, "+OK");
            }
            _ => {
                write_line(out, "-ERR unknown command or wrong arguments: this is only a stand-in");
            }
        }
    }

    /// What [`token`]'s script does. It knows no command whose reply a script could not hold.
    fn carry(&mut self, keys: &[&[u8]], args: &[&[u8]], resp3: bool, out: &mut BytesMut) {
        let [_, digest, count, rest @ ..] = args else {
            return write_line(out, "-ERR user_script");
        };
        let count = number(count).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        let (deadlines, command) = rest.split_at_checked(2 * count).unwrap_or_default();
        let marker = keys.first().copied().filter(|_| !digest.is_empty());
        if let Some(found) = marker.and_then(|marker| self.get(marker)) {
            let value = found.value.clone();
            self.recognised += 1;
            tagged(out, b"old");
            return write_bulk(out, &value);
        }
        let missing: Vec<bool> = deadlines
            .chunks(2)
            .map(|pair| pair.first().is_some_and(|key| self.get(key).is_none()))
            .collect();
        let mut reply = BytesMut::new();
        // One level only: a script cannot run a script.
        if command.first().is_some_and(|name| name.eq_ignore_ascii_case(b"EVAL")) {
            write_line(&mut reply, "-ERR This Redis command is not allowed from script");
        } else {
            self.answer(command, resp3, &mut reply);
        }
        let text = reply.strip_suffix(b"\r\n").unwrap_or(&reply);
        if let Some(error) = text.strip_prefix(b"-") {
            tagged(out, b"error");
            return write_bulk(out, error);
        }
        for (pair, missing) in deadlines.chunks(2).zip(missing) {
            if let (true, [key, time]) = (missing, pair)
                && let Some(entry) = self.entries.get_mut(*key)
            {
                entry.expires = number(time).map(at);
            }
        }
        if let Some(marker) = marker {
            let kept = match text.split_first() {
                Some((b'$', rest)) if *rest != *b"-1" => {
                    let bulk = rest.iter().position(|byte| *byte == b'\n');
                    [b"$", bulk.and_then(|end| rest.get(end + 1..)).unwrap_or_default()].concat()
                }
                Some((b'+' | b':', _)) => text.to_vec(),
                Some((b'_' | b'$', _)) => b"_".to_vec(),
                _ => b"!".to_vec(),
            };
            let value = [digest, kept.as_slice()].concat();
            self.put(marker, &value, Some(Instant::now() + MARKER_LIFE));
        }
        if resp3 && text == b"_" {
            write_head(out, '*', 1);
            return write_bulk(out, b"new");
        }
        tagged(out, b"new");
        out.extend_from_slice(&reply);
    }

    /// What [`residue`]'s script does. Times beyond what a clock can hold are far ones.
    fn settle(&mut self, keys: &[&[u8]], left: Option<i64>) {
        let far = Instant::now() + LIFE_MAX / 2;
        for key in keys {
            if let Some(entry) =
                self.entries.get_mut(*key).filter(|entry| entry.expires > Some(far))
            {
                let left = left.and_then(|left| span(left, 1)).unwrap_or_default();
                entry.expires = Some(Instant::now() + left);
            }
        }
    }

    fn set(&mut self, key: &[u8], text: &[u8], options: &[&[u8]], nil: &str, out: &mut BytesMut) {
        let mut expires = None;
        let mut rest = options.iter();
        while let Some(option) = rest.next() {
            let unit = match option.to_ascii_uppercase().as_slice() {
                b"NX" if self.get(key).is_some() => return write_line(out, nil),
                b"XX" if self.get(key).is_none() => return write_line(out, nil),
                b"NX" | b"XX" => continue,
                b"EX" => 1000,
                b"PX" => 1,
                b"PXAT" => 0,
                _ => return write_line(out, "-ERR syntax error"),
            };
            let time = rest.next().and_then(|time| number(time)).filter(|time| *time > 0);
            let Some(time) = time else {
                return write_line(out, "-ERR invalid expire time in 'set' command");
            };
            let after = span(time, unit).unwrap_or_default();
            expires = Some(if unit == 0 { at(time) } else { Instant::now() + after });
        }
        self.put(key, text, expires);
        if let Some(log) = &mut self.log {
            log.add(key, text);
        }
        write_line(out, "+OK");
    }

    fn add(&mut self, key: &[u8], by: Option<i64>, out: &mut BytesMut) {
        let (held, expires) = match self.get(key) {
            Some(entry) => (number(&entry.value), entry.expires),
            None => (Some(0), None),
        };
        let sum = held.zip(by).and_then(|(held, by)| held.checked_add(by));
        let Some(sum) = sum else { return write_line(out, NOT_AN_INTEGER) };
        self.put(key, sum.to_string().as_bytes(), expires);
        write_line(out, &format!(":{sum}"));
    }

    fn expire(&mut self, key: &[u8], time: Option<i64>, unit: u64, out: &mut BytesMut) {
        let Some(time) = time else { return write_line(out, NOT_AN_INTEGER) };
        self.sweep();
        let Some(entry) = self.entries.get_mut(key) else { return write_line(out, ":0") };
        entry.expires = Some(Instant::now() + span(time, unit).unwrap_or_default());
        write_line(out, ":1");
    }

    /// What is left of a key's time in units of so many milliseconds; −1 for ever, −2 for no key.
    fn left(&self, key: &[u8], unit: u128) -> i64 {
        match self.get(key).map(|entry| entry.expires) {
            None => -2,
            Some(None) => -1,
            Some(Some(expires)) => {
                let millis = expires.saturating_duration_since(Instant::now()).as_millis();
                i64::try_from(millis.div_ceil(unit)).unwrap_or(i64::MAX)
            }
        }
    }
}

impl Log {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        if self.sets.len() < self.sets_max {
            self.sets.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        } else {
            self.whole = false;
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The head of an answer of the script.
fn tagged(out: &mut BytesMut, tag: &[u8]) {
    write_head(out, '*', 2);
    write_bulk(out, tag);
}

/// A time in milliseconds since the epoch, on the clock of times to live.
fn at(millis: i64) -> Instant {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    Instant::now() + time.saturating_sub(since).min(LIFE_MAX)
}

/// A time to live of so many units of so many milliseconds; `None` below zero.
fn span(time: i64, unit: u64) -> Option<Duration> {
    let millis = u64::try_from(time).ok()?.saturating_mul(unit);
    Some(Duration::from_millis(millis).min(LIFE_MAX))
}

fn number(word: &[u8]) -> Option<i64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_holds_what_was_set_in_order_and_owns_up_to_gaps() {
        let mut store = Store::with_log(2);
        let mut say = |words: &[&[u8]]| store.answer(words, false, &mut BytesMut::new());
        say(&[b"SET", b"k", b"1"]);
        say(&[b"SET", b"k", b"0", b"NX"]);
        let script = token::SCRIPT.as_bytes();
        say(&[b"EVAL", script, b"2", b"fusebox:m", b"k", b"2", b"d", b"0", b"SET", b"k", b"2"]);
        let pair = |value: &str| ("k".to_owned(), value.to_owned());
        assert_eq!(store.log(), Some(vec![pair("1"), pair("2")]));
        store.answer(&[b"SET", b"k", b"3"], false, &mut BytesMut::new());
        assert_eq!(store.log(), None);
        assert_eq!(Store::default().log(), None);
    }
}
