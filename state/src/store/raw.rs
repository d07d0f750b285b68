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

use super::head::{FirstHead, Head};

mod part;
mod segment;
mod value;

pub(super) use part::LARGE_BYTES;
use part::Part;
pub(super) use segment::SEGMENT;
use segment::Segment;
use value::HEADS_KEPT;
pub use value::RawCounts;
pub(super) use value::{Key, Position, Value};

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
        raw.read_all(part::readers(bytes), progress)?;
        Ok(raw)
    }

    fn read_all(&mut self, readers: usize, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut whole = Part::default();
        for part in part::read_all(file, self.bytes, readers, progress)? {
            whole.append(part);
        }
        let (segments, heads) = self.take(whole);
        self.judge(segments, heads);
        Ok(())
    }

    /// Takes in what was read, but for what is still to be judged.
    fn take(&mut self, whole: Part) -> (Vec<Segment>, Vec<(u64, Head)>) {
        let Part { mut values, heads, segments, first, newer, counts, scars } = whole;
        Value::arrange(&mut values);
        (self.values, self.first, self.newer) = (Arc::new(values), first, newer);
        (self.counts, self.scars) = (counts, scars);
        (segments, heads)
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
        let mut whole = Part::default();
        for value in values {
            file.write_all(&value).unwrap();
            whole.value(&value, raw.bytes);
            raw.bytes += value.len() as u64;
        }
        for (_, head) in raw.take(whole).1 {
            raw.heads.insert(head.commit, SeenHead { head, reachable: true });
        }
        raw.file = Some(file);
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
