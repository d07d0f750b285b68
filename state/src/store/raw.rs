//! The one reader of a store's raw log. It serves a look before an open, a rebuild, a check, an export and a repair,
//! and never lets sled near the files: sled locks, zeroes what it takes for torn, and truncates.
//!
//! Our values are in the log whole and uncompressed, each in its own envelope with its own checksum, what was
//! superseded or removed until its space is used again. So every value that can be read is found, whatever became of
//! the structure around it; `plan.rs` says which of them are live.
//!
//! The structure is looked at, too, since it decides what sled would do with the file. sled 0.34 writes segments of
//! 512 KiB (its `pagecache/logger.rs`, `iterator.rs` and `serialization.rs` are the source):
//!
//! ```text
//! segment:  !crc32 u32 | lsn u64 | highest stable lsn u64 | message … message        (numbers xor-ed)
//! message:  !crc32 u32 | kind u8 | length | segment number | page | length bytes     (varints)
//! ```
//!
//! sled follows the messages of a segment to its end or to a *cap*. In the segment of the highest lsn they may end
//! anywhere; what is behind that end sled overwrites with zeroes when it opens. In any other segment an early end
//! is damage. Messages never cross a segment's end, and no value crosses a message's.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use memchr::memmem;

use super::{
    calls, facts,
    head::{self, AnyHead, FirstHead, Head},
    keys::{self, GONE},
    record::{
        self, CallRecord, ChunkRecord, DeadRecord, FIRST, FactRecord, GoneRecord, HistoryRecord,
        Kind, MAGIC, NoteRecord, Sealed, SendingRecord, Unreadable, VoidRecord,
    },
};

/// Bytes of a segment.
pub(super) const SEGMENT: usize = 512 * 1024;
/// Bytes of a segment's header.
const SEGMENT_HEADER: usize = 20;
/// The longest header of a message; nothing begins closer to a segment's end.
const MESSAGE_HEADER_MAX: usize = 32;
/// Heads that are kept: the newest.
const HEADS_KEPT: usize = 64;

/// The key of a value; in the order of the keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Chunk(u64, u32),
    Dead(u64),
    Fact(Box<str>),
    Gone(u64),
    Call(u64),
    Note(u64),
    History(u64),
}

impl Key {
    /// The key in sled.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Chunk(seq, index) => keys::chunk_key(*seq, *index).to_vec(),
            Self::Dead(seq) => keys::key(keys::DEAD, *seq).to_vec(),
            Self::Fact(name) => facts::key(name),
            Self::Gone(block) => keys::key(GONE, *block).to_vec(),
            Self::Call(seq) => keys::key(keys::CALLS, *seq).to_vec(),
            Self::Note(seq) => keys::key(keys::SENDING, *seq).to_vec(),
            Self::History(number) => keys::key(keys::HISTORY, *number).to_vec(),
        }
    }

    /// The key that sled has; `None` for the head and for what is not ours.
    pub(super) fn from_bytes(key: &[u8]) -> Option<Self> {
        let number = keys::number_of(key);
        Some(match *key.first()? {
            keys::CHUNKS => keys::chunk_of(key).map(|(seq, index)| Self::Chunk(seq, index))?,
            keys::DEAD => Self::Dead(number?),
            facts::PREFIX => Self::Fact(facts::name_of(key)?.into()),
            GONE => Self::Gone(number?),
            keys::CALLS => Self::Call(number?),
            keys::SENDING => Self::Note(number?),
            keys::HISTORY => Self::History(number?),
            _ => return None,
        })
    }
}

/// The place of a value, and what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) offset: u64,
    pub(super) length: u16,
    /// It says that nothing is under its key any more.
    pub(super) is_void: bool,
    /// A header that took the place of another.
    pub(super) is_residue: bool,
    /// Chunks of the body of this header.
    pub(super) chunks: u32,
}

/// A value in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) key: Key,
    /// The commit that wrote it.
    pub(super) commit: u64,
    pub(super) place: Position,
}

/// Some of a log's values, at most one of each key, in the order of the keys. Four bytes each, beside the values
/// themselves, which it shares.
#[derive(Clone, Debug, Default)]
pub(super) struct Picked {
    all: Arc<Vec<Value>>,
    /// Their places in `all`, ascending.
    at: Vec<u32>,
}

impl Picked {
    /// These of the same log; of several of one key the newest.
    pub(super) fn of_same(&self, mut at: Vec<u32>) -> Self {
        at.sort_unstable();
        let mut picked = Self { all: Arc::clone(&self.all), at: Vec::with_capacity(at.len()) };
        for next in at {
            let last = picked.at.last().and_then(|last| picked.value(*last));
            if last.map(|it| &it.key) == picked.value(next).map(|it| &it.key) {
                picked.at.pop();
            }
            picked.at.push(next);
        }
        picked
    }

    /// The one in this place.
    pub(super) fn value(&self, at: u32) -> Option<&Value> {
        self.all.get(at as usize)
    }

    /// Adds others of the same log; of several of one key the newest stays.
    pub(super) fn extend(&mut self, more: impl Iterator<Item = u32>) {
        let mut at = std::mem::take(&mut self.at);
        at.extend(more);
        *self = self.of_same(at);
    }

    /// With their places, for [`Picked::of_same`].
    pub(super) fn with_places(&self) -> impl DoubleEndedIterator<Item = (u32, &Value)> {
        self.at.iter().filter_map(|at| Some((*at, self.value(*at)?)))
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.with_places().map(|(_, value)| value)
    }

    /// Which of them is under `key`: the first is 0.
    pub(super) fn index_of(&self, key: &Key) -> Option<usize> {
        let found = self.at.binary_search_by(|at| {
            self.value(*at).map_or(std::cmp::Ordering::Less, |value| value.key.cmp(key))
        });
        found.ok()
    }

    /// The one of this index.
    pub(super) fn nth(&self, index: usize) -> Option<&Value> {
        self.value(*self.at.get(index)?)
    }

    /// The place of the one under `key`.
    pub(super) fn place_of(&self, key: &Key) -> Option<u32> {
        self.at.get(self.index_of(key)?).copied()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.nth(self.index_of(key)?)
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.index_of(key).is_some()
    }
}

/// Values in a raw log, superseded and removed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RawCounts {
    /// Call headers.
    pub calls: u64,
    /// Chunks of large bodies.
    pub chunks: u64,
    /// Sending and dead-letter marks, taken back ones included.
    pub marks: u64,
    /// Heads, facts, removal records and history records.
    pub others: u64,
    /// Envelopes whose checksum is wrong. Some are normal: overwritten space of the log.
    pub scarred: u64,
    /// Whole values of a newer version.
    pub newer: u64,
}

/// A head, and whether sled would get to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenHead {
    pub(super) head: Head,
    pub(super) reachable: bool,
}

/// All that a raw log holds.
#[derive(Debug)]
pub(super) struct Raw {
    file: Option<File>,
    /// Bytes of the log.
    pub(super) bytes: u64,
    /// By key and commit.
    values: Arc<Vec<Value>>,
    /// By commit, the newest.
    pub(super) heads: BTreeMap<u64, SeenHead>,
    /// The newest head of the first format.
    pub(super) first: Option<FirstHead>,
    /// The format of a value of a newer version.
    pub(super) newer: Option<u16>,
    pub(super) counts: RawCounts,
    /// What is wrong with the structure.
    pub(super) scars: Vec<String>,
    /// The beginnings of sled's segments, and the ends of their messages in the log.
    ends: BTreeMap<u64, u64>,
}

/// A segment's header and the extent of its messages.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    lsn: i64,
    stable: i64,
    /// The end of its messages, and whether that is the right one.
    end: usize,
    whole: bool,
}

impl Raw {
    /// Reads the log of the sled store in `db`. One that is missing is empty.
    pub(super) fn read(db: &Path, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Self> {
        let path: PathBuf = db.join("db");
        let file = match File::open(&path) {
            // What is there instead of a log is not one.
            Ok(file) => Some(file).filter(|file| !file.metadata().is_ok_and(|it| it.is_dir())),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        let bytes = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|it| it.len()))?;
        let mut raw = Self {
            file,
            bytes,
            values: Arc::default(),
            heads: BTreeMap::new(),
            first: None,
            newer: None,
            counts: RawCounts::default(),
            scars: Vec::new(),
            ends: BTreeMap::new(),
        };
        raw.read_all(progress)?;
        Ok(raw)
    }

    fn read_all(&mut self, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let finder = memmem::Finder::new(&MAGIC);
        let mut buffer = vec![0; SEGMENT];
        let (mut segments, mut heads, mut offset) = (Vec::new(), Vec::new(), 0);
        while offset < self.bytes {
            let length = read_up_to(&file, &mut buffer, offset)?;
            let data = buffer.get(..length).unwrap_or_default();
            let segment = self.segment(data, offset);
            for at in finder.find_iter(data) {
                let value = data.get(at..).unwrap_or_default();
                self.value(value, offset + at as u64, &mut heads);
            }
            segments.extend(segment);
            offset += SEGMENT as u64;
            progress(offset.min(self.bytes), self.bytes);
        }
        self.file = Some(file);
        self.sort();
        self.judge(segments, heads);
        Ok(())
    }

    /// Puts the values in their order. Of copies of one the first stays.
    fn sort(&mut self) {
        let values = Arc::make_mut(&mut self.values);
        values.sort_by(|one, other| (&one.key, one.commit).cmp(&(&other.key, other.commit)));
        values.dedup_by(|later, first| (&later.key, later.commit) == (&first.key, first.commit));
    }

    /// Follows a segment's messages.
    fn segment(&mut self, data: &[u8], offset: u64) -> Option<Segment> {
        let Some(header) = data.first_chunk::<SEGMENT_HEADER>() else {
            if data.iter().any(|byte| *byte != 0) {
                self.scars.push(format!("the log ends within a segment's header at {offset}"));
            }
            return None;
        };
        let Some((lsn, stable)) = segment_header(header) else {
            if data.iter().any(|byte| *byte != 0) {
                self.scars.push(format!("the header of the segment at {offset} is damaged"));
            }
            return None;
        };
        let (end, whole) = messages(data, lsn);
        Some(Segment { offset, lsn, stable, end, whole })
    }

    fn value(&mut self, value: &[u8], offset: u64, heads: &mut Vec<(u64, Head)>) {
        let sealed = match record::peel(value) {
            Ok(sealed) => sealed,
            Err(Unreadable::Newer { found }) => {
                self.counts.newer += 1;
                self.newer = Some(found);
                return;
            }
            Err(Unreadable::Damaged(_)) => {
                self.counts.scarred += 1;
                return;
            }
        };
        *match sealed.kind {
            Kind::Call => &mut self.counts.calls,
            Kind::Chunk => &mut self.counts.chunks,
            Kind::Sending | Kind::Note | Kind::Dead | Kind::Void => &mut self.counts.marks,
            Kind::Head | Kind::Fact | Kind::History | Kind::Gone => &mut self.counts.others,
        } += 1;
        if sealed.kind == Kind::Head {
            match head::decode(value.get(..sealed.length).unwrap_or_default()) {
                Ok(AnyHead::Vouching(head)) => heads.push((offset, head)),
                Ok(AnyHead::First(head)) => {
                    let before = self.first.filter(|before| before.commit > head.commit);
                    self.first = before.or(Some(head));
                }
                Err(_) => self.counts.scarred += 1,
            }
            if heads.len() > 4 * HEADS_KEPT {
                heads.sort_unstable_by_key(|(_, head)| std::cmp::Reverse(head.commit));
                heads.dedup_by_key(|(offset, head)| (head.commit, *offset / SEGMENT as u64));
                heads.truncate(2 * HEADS_KEPT);
            }
            return;
        }
        let length = u16::try_from(sealed.length).unwrap_or(u16::MAX);
        match found(&sealed, offset, length) {
            Some((key, place)) => {
                Arc::make_mut(&mut self.values).push(Value { key, commit: sealed.commit, place });
            }
            None => self.counts.scarred += 1,
        }
    }

    /// What sled would make of the segments, and which heads it would get to.
    fn judge(&mut self, mut segments: Vec<Segment>, heads: Vec<(u64, Head)>) {
        segments.sort_unstable_by_key(|segment| segment.lsn);
        let twice = segments.windows(2).any(|pair| matches!(pair, [a, b] if a.lsn == b.lsn));
        if twice {
            self.scars.push("two segments have the same number".into());
        }
        let stable = segments.iter().map(|segment| segment.stable).max().unwrap_or_default();
        let size = i64::try_from(SEGMENT).unwrap_or(i64::MAX);
        let base = stable.max(0) / size * size;
        // sled drops whatever is behind a gap in the segments that it does not know to be stable. It begins at its
        // snapshot if that is newer; a snapshot may be damaged, so it counts for nothing here. What is not a gap to sled
        // is then healed for nothing, and nothing is lost.
        let tail = segments.iter().map(|segment| segment.lsn).filter(|lsn| *lsn >= base);
        let expected = std::iter::successors(Some(base), |lsn| Some(lsn.saturating_add(size)));
        if let Some((_, missing)) = tail.zip(expected).find(|(found, expected)| found != expected) {
            self.scars.push(format!("the segment of number {missing} is missing"));
        }
        let last = segments.last().map(|segment| segment.lsn);
        for segment in &segments {
            if !segment.whole && Some(segment.lsn) != last {
                self.scars.push(format!(
                    "the segment at {} breaks off after {} bytes",
                    segment.offset, segment.end
                ));
            }
        }
        let end = |segment: &Segment| (segment.offset, segment.offset + segment.end as u64);
        self.ends = segments.iter().map(end).collect();
        for (offset, head) in heads {
            let reachable = self.reaches(offset);
            let seen = self.heads.entry(head.commit).or_insert(SeenHead { head, reachable });
            seen.reachable |= reachable;
        }
        while self.heads.len() > HEADS_KEPT {
            self.heads.pop_first();
        }
    }

    /// A log that holds these values, all within reach.
    #[cfg(test)]
    pub(super) fn of(values: impl Iterator<Item = Vec<u8>>) -> Self {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        let mut raw = Self {
            file: None,
            bytes: 0,
            values: Arc::default(),
            heads: BTreeMap::new(),
            first: None,
            newer: None,
            counts: RawCounts::default(),
            scars: Vec::new(),
            ends: BTreeMap::new(),
        };
        let mut heads = Vec::new();
        for value in values {
            file.write_all(&value).unwrap();
            raw.value(&value, raw.bytes, &mut heads);
            raw.bytes += value.len() as u64;
        }
        for (_, head) in heads {
            raw.heads.insert(head.commit, SeenHead { head, reachable: true });
        }
        raw.file = Some(file);
        raw.sort();
        raw
    }

    /// The newest value of `key` up to a commit.
    pub(super) fn newest(&self, key: &Key, up_to: u64) -> Option<&Value> {
        self.values.get(self.place_of_newest(key, up_to)?)
    }

    fn place_of_newest(&self, key: &Key, up_to: u64) -> Option<usize> {
        let behind = self.values.partition_point(|it| (&it.key, it.commit) <= (key, up_to));
        let at = behind.checked_sub(1)?;
        self.values.get(at).is_some_and(|it| it.key == *key).then_some(at)
    }

    /// The place of that value, for a [`Picked`] of this log.
    pub(super) fn picked_newest(&self, key: &Key) -> Option<u32> {
        u32::try_from(self.place_of_newest(key, u64::MAX)?).ok()
    }

    /// The newest value of each key up to a commit.
    pub(super) fn newest_of_each(&self, up_to: u64) -> Picked {
        let all = &*self.values;
        let is_newest = |at: &u32| {
            let at = *at as usize;
            let next = all.get(at + 1).filter(|next| next.commit <= up_to);
            all.get(at)
                .is_some_and(|it| it.commit <= up_to && next.is_none_or(|next| next.key != it.key))
        };
        let places = 0..u32::try_from(all.len()).unwrap_or(u32::MAX);
        Picked { all: Arc::clone(&self.values), at: places.filter(is_newest).collect() }
    }

    /// Keys of which a commit above `commit` has written a value.
    pub(super) fn unsettled(&self, commit: u64) -> Vec<Key> {
        let above = self.values.iter().filter(|it| it.commit > commit);
        let mut keys: Vec<Key> = above.map(|it| it.key.clone()).collect();
        keys.dedup();
        keys
    }

    /// The highest commit of which anything was written.
    pub(super) fn highest_commit(&self) -> u64 {
        let of_values = self.values.iter().map(|it| it.commit).max();
        of_values.into_iter().chain(self.heads.keys().copied()).max().unwrap_or_default()
    }

    /// Whether sled would get to `offset`.
    fn reaches(&self, offset: u64) -> bool {
        let begin = offset / SEGMENT as u64 * SEGMENT as u64;
        self.ends.get(&begin).is_some_and(|end| offset < *end)
    }

    /// What a commit above `commit` has left that sled would show: its newest value of each key. Removal records and
    /// history are left out.
    pub(super) fn shown_above(&self, commit: u64) -> Picked {
        let is_shown = |it: &Value| {
            let is_state = !matches!(it.key, Key::Gone(_) | Key::History(_));
            it.commit > commit && is_state && self.reaches(it.place.offset)
        };
        let shown = (0..).zip(&*self.values).filter(|(_, it)| is_shown(it));
        let all = Picked { all: Arc::clone(&self.values), at: Vec::new() };
        all.of_same(shown.map(|(at, _)| at).collect())
    }

    /// Whether sled would get to `head`, and that is the last one.
    pub(super) fn ends_with(&self, head: &Head) -> bool {
        let last = self.heads.values().next_back();
        last.is_some_and(|seen| seen.reachable && seen.head == *head)
    }

    /// Whether there is nothing of ours in it.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.heads.is_empty() && self.first.is_none()
    }

    /// Values are read from this copy of the log from now on.
    pub(super) fn read_from(&mut self, copy: &Path) -> io::Result<()> {
        let file = File::open(copy.join("db"))?;
        if file.metadata()?.len() != self.bytes {
            return Err(io::Error::other("the copy of the log has another length"));
        }
        self.file = Some(file);
        Ok(())
    }

    /// Reads a value.
    pub(super) fn load(&self, place: Position) -> io::Result<Vec<u8>> {
        let mut value = vec![0; usize::from(place.length)];
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(&mut value, place.offset)?;
        Ok(value)
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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
    let payload = sealed.payload;
    let key = match sealed.kind {
        Kind::Call => {
            let call: CallRecord<'_> = record::decode(payload).ok()?;
            place.is_residue = calls::is_residue(call.traits);
            place.chunks = call.chunks;
            Key::Call(call.seq)
        }
        Kind::Chunk => {
            let chunk: ChunkRecord<'_> = record::decode(payload).ok()?;
            Key::Chunk(chunk.seq, chunk.index)
        }
        Kind::Sending => Key::Note(record::decode::<SendingRecord>(payload).ok()?.seq),
        Kind::Note => Key::Note(record::decode::<NoteRecord<'_>>(payload).ok()?.seq),
        Kind::Dead => Key::Dead(record::decode::<DeadRecord<'_>>(payload).ok()?.seq),
        Kind::Fact => Key::Fact(record::decode::<FactRecord<'_>>(payload).ok()?.name.into()),
        Kind::History => Key::History(record::decode::<HistoryRecord<'_>>(payload).ok()?.number),
        Kind::Gone => Key::Gone(record::decode::<GoneRecord>(payload).ok()?.block),
        Kind::Void => {
            place.is_void = true;
            Key::from_bytes(record::decode::<VoidRecord<'_>>(payload).ok()?.key)?
        }
        Kind::Head => return None,
    };
    // The first format had no removal records and no taken back marks.
    let is_new = matches!(sealed.kind, Kind::Gone | Kind::Void);
    (sealed.format != FIRST || !is_new).then_some((key, place))
}

/// The numbers in a segment's header, if its checksum is right.
fn segment_header(header: &[u8; SEGMENT_HEADER]) -> Option<(i64, i64)> {
    let [c0, c1, c2, c3, l0, l1, l2, l3, l4, l5, l6, l7, s0, s1, s2, s3, s4, s5, s6, s7] = *header;
    let crc = !u32::from_le_bytes([c0, c1, c2, c3]);
    let number = |bytes| i64::from_le_bytes(bytes) ^ i64::MAX;
    (crc32fast::hash(header.get(4..)?) == crc).then(|| {
        (number([l0, l1, l2, l3, l4, l5, l6, l7]), number([s0, s1, s2, s3, s4, s5, s6, s7]))
    })
}

/// The end of a segment's messages, and whether that is its end.
fn messages(data: &[u8], lsn: i64) -> (usize, bool) {
    let number = u64::try_from(lsn).unwrap_or_default() / SEGMENT as u64;
    let mut at = SEGMENT_HEADER;
    loop {
        if at + MESSAGE_HEADER_MAX > SEGMENT {
            return (at, true);
        }
        match message(data.get(at..).unwrap_or_default(), number) {
            Some((_, true)) => return (at, true),
            Some((length, false)) => at += length,
            None => return (at, false),
        }
    }
}

/// Length of the message at the start of `bytes`, and whether it is a segment's last. `None` if there is none.
fn message(bytes: &[u8], number: u64) -> Option<(usize, bool)> {
    const CORRUPTED: u8 = 0;
    const CAP: u8 = 2;
    const LAST_KIND: u8 = 11;
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first()?;
    if *kind == CORRUPTED || *kind > LAST_KIND {
        return None;
    }
    let (length, rest) = varint(rest)?;
    let (segment, rest) = varint(rest)?;
    let (_page, rest) = varint(rest)?;
    let body = rest.get(..usize::try_from(length).ok()?)?;
    let header = bytes.get(4..bytes.len() - rest.len())?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(body);
    hasher.update(header);
    let is_whole = hasher.finalize() == !u32::from_le_bytes(*crc) && segment == number;
    is_whole.then_some((4 + header.len() + body.len(), *kind == CAP))
}

/// A number as sled packs it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    match *first {
        0..=240 => Some((u64::from(*first), rest)),
        241..=248 => {
            let (second, rest) = rest.split_first()?;
            Some((240 + 256 * (u64::from(*first) - 241) + u64::from(*second), rest))
        }
        249 => {
            let ([high, low], rest) = rest.split_first_chunk()?;
            Some((2288 + 256 * u64::from(*high) + u64::from(*low), rest))
        }
        size => {
            let (digits, rest) = rest.split_at_checked(usize::from(size) - 247)?;
            let number =
                digits.iter().rev().fold(0, |number, digit| number << 8 | u64::from(*digit));
            Some((number, rest))
        }
    }
}
