//! Reading a part of a log.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use memchr::memmem;

use super::{
    segment::{SEGMENT, Segment},
    value::{HEADS_KEPT, Key, Position, RawCounts, Value},
};
use crate::store::{
    calls,
    head::{self, AnyHead, FirstHead, Head},
    record::{
        self, CallRecord, ChunkRecord, DeadRecord, FIRST, FactRecord, GoneRecord, HistoryRecord,
        Kind, MAGIC, NoteRecord, Sealed, SendingRecord, Unreadable, VoidRecord,
    },
};

/// Bytes that a thread reads before it takes the next part: together they read the log from its beginning to its end.
const PART: u64 = if cfg!(test) { 1 } else { 8 } * SEGMENT as u64;
/// A log is large from this size on: several threads read it, and it is copied meanwhile. A smaller one is read in a
/// fraction of a second.
pub(in crate::store) const LARGE_BYTES: u64 = 64 * 1024 * 1024;
/// Threads that read at most: more would wait for the disk.
const READERS_MAX: usize = 4;

/// What a part of a log holds: its values [arranged](Value::arrange), the rest in the order of the log.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Part {
    pub(super) values: Vec<Value>,
    pub(super) heads: Vec<(u64, Head)>,
    pub(super) segments: Vec<Segment>,
    /// See [`super::Raw`], as the following.
    pub(super) first: Option<FirstHead>,
    pub(super) newer: Option<u16>,
    pub(super) counts: RawCounts,
    pub(super) scars: Vec<String>,
}

/// How many threads are worth it for a log of so many bytes.
pub(super) fn readers(bytes: u64) -> usize {
    if bytes < LARGE_BYTES {
        return 1;
    }
    thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX)
}

/// Reads a log of `bytes` with so many threads, this one among them. The parts come in the order of the log. `progress`
/// is told how far it is.
pub(super) fn read_all(
    file: &File,
    bytes: u64,
    readers: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Vec<Part>> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    // The next part that nobody has taken, until there is none or one could not be read.
    let take = |told: &mut dyn FnMut(u64)| {
        let (mut parts, mut buffer) = (Vec::new(), vec![0; SEGMENT]);
        loop {
            let begin = next.fetch_add(PART, Ordering::Relaxed);
            if begin >= bytes {
                return Ok(parts);
            }
            let part = begin..bytes.min(begin + PART);
            let read = Part::read(file, part, &mut buffer, &mut |more| {
                told(done.fetch_add(more, Ordering::Relaxed) + more);
            });
            match read {
                Ok(part) => parts.push((begin, part)),
                Err(error) => {
                    next.store(bytes, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut parts = thread::scope(|scope| {
        let begin = || {
            let builder = thread::Builder::new().name("log-reader".into());
            builder.spawn_scoped(scope, || take(&mut |_| {}))
        };
        // Where there is no thread to be had, this one reads all.
        let others: Vec<_> = (1..readers).map_while(|_| begin().ok()).collect();
        let mut parts = take(&mut |done| progress(done, bytes));
        for other in others {
            let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            parts = parts.and_then(|parts| Ok([parts, theirs?].into_iter().flatten().collect()));
        }
        parts
    })?;
    progress(bytes, bytes);
    parts.sort_unstable_by_key(|(begin, _)| *begin);
    Ok(parts.into_iter().map(|(_, part)| part).collect())
}

impl Part {
    /// Reads the segments of `part`, and says of each how many bytes it has.
    fn read(
        file: &File,
        part: Range<u64>,
        buffer: &mut [u8],
        done: &mut dyn FnMut(u64),
    ) -> io::Result<Self> {
        let finder = memmem::Finder::new(&MAGIC);
        let mut read = Self::default();
        for offset in part.step_by(SEGMENT) {
            let length = read_up_to(file, buffer, offset)?;
            let data = buffer.get(..length).unwrap_or_default();
            match Segment::follow(data, offset) {
                Ok(segment) => read.segments.extend(segment),
                Err(scar) => read.scars.push(scar),
            }
            // What is within a whole value is the callers', whatever it looks like.
            let mut from = 0;
            while let Some(at) = finder.find(data.get(from..).unwrap_or_default()) {
                let at = from + at;
                let length = read.value(data.get(at..).unwrap_or_default(), offset + at as u64);
                from = at + length.unwrap_or(1);
            }
            done(length as u64);
        }
        // Here, so that the readers share the work, and most copies are gone before the parts come together.
        Value::arrange(&mut read.values);
        read.values.shrink_to_fit();
        Ok(read)
    }

    /// Adds the value at the start of some bytes, if there is one; returns the length of a whole one.
    pub(super) fn value(&mut self, value: &[u8], offset: u64) -> Option<usize> {
        let sealed = match record::peel(value) {
            Ok(sealed) => sealed,
            Err(Unreadable::Newer { found }) => {
                self.counts.newer += 1;
                self.newer = Some(found);
                return None;
            }
            Err(Unreadable::Damaged(_)) => {
                self.counts.scarred += 1;
                return None;
            }
        };
        *match sealed.kind {
            Kind::Call => &mut self.counts.calls,
            Kind::Chunk => &mut self.counts.chunks,
            Kind::Sending | Kind::Note | Kind::Dead | Kind::Void => &mut self.counts.marks,
            Kind::Head | Kind::Fact | Kind::History | Kind::Gone => &mut self.counts.others,
        } += 1;
        if sealed.kind == Kind::Head {
            self.head(value.get(..sealed.length).unwrap_or_default(), offset);
            return Some(sealed.length);
        }
        let length = u16::try_from(sealed.length).unwrap_or(u16::MAX);
        match found(&sealed, offset, length) {
            Some((key, place)) => {
                self.values.push(Value { key, commit: sealed.commit, place });
            }
            None => self.counts.scarred += 1,
        }
        Some(sealed.length)
    }

    fn head(&mut self, value: &[u8], offset: u64) {
        match head::decode(value) {
            Ok(AnyHead::Vouching(head)) => self.heads.push((offset, head)),
            Ok(AnyHead::First(head)) => self.first = newest(self.first, Some(head)),
            Err(_) => self.counts.scarred += 1,
        }
        if self.heads.len() > 4 * HEADS_KEPT {
            self.heads.sort_unstable_by_key(|(_, head)| std::cmp::Reverse(head.commit));
            self.heads.dedup_by_key(|(offset, head)| (head.commit, *offset / SEGMENT as u64));
            self.heads.truncate(2 * HEADS_KEPT);
        }
    }

    /// Adds the part that follows it.
    pub(super) fn append(&mut self, mut next: Self) {
        self.values.append(&mut next.values);
        self.heads.append(&mut next.heads);
        self.segments.append(&mut next.segments);
        self.first = newest(self.first, next.first);
        self.newer = next.newer.or(self.newer);
        self.counts.add(next.counts);
        self.scars.append(&mut next.scars);
    }
}

/// The newest of two heads of the first format; of two of one commit the later one in the log.
fn newest(before: Option<FirstHead>, then: Option<FirstHead>) -> Option<FirstHead> {
    let Some(head) = then else { return before };
    before.filter(|before| before.commit > head.commit).or(Some(head))
}

/// As many bytes as there are, at most a buffer full.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The key of a value, by its own word. `None` if it does not decode.
fn found(sealed: &Sealed<'_>, offset: u64, length: u16) -> Option<(Key, Position)> {
    let mut place = Position { offset, length, is_void: false, is_residue: false, chunks: 0 };
    let key = match sealed.kind {
        Kind::Call => {
            let call: CallRecord<'_> = sealed.read().ok()?;
            place.is_residue = calls::is_residue(call.traits);
            place.chunks = call.chunks;
            Key::Call(call.seq)
        }
        Kind::Chunk => {
            let chunk: ChunkRecord<'_> = sealed.read().ok()?;
            Key::Chunk(chunk.seq, chunk.index)
        }
        Kind::Sending => Key::Note(sealed.read::<SendingRecord>().ok()?.seq),
        Kind::Note => Key::Note(sealed.read::<NoteRecord<'_>>().ok()?.seq),
        Kind::Dead => Key::Dead(sealed.read::<DeadRecord<'_>>().ok()?.seq),
        Kind::Fact => Key::Fact(sealed.read::<FactRecord<'_>>().ok()?.name.into()),
        Kind::History => Key::History(sealed.read::<HistoryRecord<'_>>().ok()?.number),
        Kind::Gone => Key::Gone(sealed.read::<GoneRecord>().ok()?.block),
        Kind::Void => {
            place.is_void = true;
            Key::from_bytes(sealed.read::<VoidRecord<'_>>().ok()?.key)?
        }
        Kind::Head => return None,
    };
    // The first format had no removal records and no taken back marks.
    let is_new = matches!(sealed.kind, Kind::Gone | Kind::Void);
    (sealed.format != FIRST || !is_new).then_some((key, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value on its own page: a log of four segments, the last of them cut short.
    fn log() -> (File, u64) {
        let bytes = 3 * SEGMENT as u64 + 5_000;
        let file = tempfile::tempfile().unwrap();
        for number in 0..bytes / 4096 {
            let record = HistoryRecord { number, record: b"what happened" };
            let value = record::seal(Kind::History, &record, 64).unwrap().stamp(number + 1);
            file.write_all_at(&value, number * 4096 + 100).unwrap();
        }
        file.set_len(bytes).unwrap();
        (file, bytes)
    }

    fn read(readers: usize) -> (Part, Vec<u64>) {
        let ((file, bytes), mut told) = (log(), Vec::new());
        let parts = read_all(&file, bytes, readers, &mut |done, of| {
            assert_eq!(of, bytes);
            told.push(done);
        });
        let append = |mut all: Part, part| {
            all.append(part);
            all
        };
        (parts.unwrap().into_iter().fold(Part::default(), append), told)
    }

    #[test]
    fn however_many_read_a_log_it_is_the_same() {
        let (alone, told) = read(1);
        let numbers: Vec<u64> = alone.values.iter().map(|value| value.commit).collect();
        assert_eq!(numbers, (1..=385).collect::<Vec<u64>>());
        let scar = |at| format!("the header of the segment at {} is damaged", at * SEGMENT);
        assert_eq!(alone.scars, (0..4).map(scar).collect::<Vec<String>>());
        assert_eq!((alone.counts.others, told.last()), (385, Some(&(3 * SEGMENT as u64 + 5_000))));
        assert!(told.is_sorted());
        for readers in 2..=4 {
            assert_eq!(read(readers).0, alone, "{readers} readers");
        }
    }

    #[test]
    fn a_part_that_cannot_be_read_fails_the_whole() {
        let file = File::options().write(true).open("/dev/null").unwrap();
        for readers in 1..=3 {
            let error = read_all(&file, 1 << 20, readers, &mut |_, _| {}).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(9), "it is open for writing alone");
        }
    }

    #[test]
    fn a_small_log_needs_one_reader() {
        assert_eq!((readers(0), readers(LARGE_BYTES - 1)), (1, 1));
        assert!((1..=READERS_MAX).contains(&readers(u64::MAX)));
    }
}
