//! Reading a log without sled: values lie in it whole and uncompressed, removed ones too.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use super::{CheckError, ExportedCall, ExportedState};
use crate::store::{
    DeadMark, dead_letters, queue,
    record::{self, CallRecord, ChunkRecord, DeadRecord, Head, Kind, MAGIC, Unreadable, VALUE_MAX},
};

/// Bytes read at a time.
const WINDOW: usize = 1 << 20;

/// Values in a raw log, superseded and removed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RawCounts {
    /// Call headers.
    pub calls: u64,
    /// Chunks of large bodies.
    pub chunks: u64,
    /// Sending and dead-letter marks.
    pub marks: u64,
    /// Heads, facts and history records.
    pub others: u64,
    /// Envelopes whose checksum is wrong. Some are normal: overwritten space of the log.
    pub scarred: u64,
    /// Whole values of a newer version.
    pub newer: u64,
}

/// What a repair found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RepairSummary {
    /// Whole calls handed over.
    pub calls: u64,
    /// Calls of which a part is missing.
    pub incomplete: u64,
    /// Envelopes whose checksum is wrong.
    pub scarred: u64,
}

/// Counts what the raw log holds; with the highest head in it.
pub(super) fn count(
    log: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<(RawCounts, Option<Head>)> {
    let mut counts = RawCounts::default();
    let mut highest: Option<Head> = None;
    walk(log, progress, &mut |_, found| match found {
        Ok((kind, value)) => {
            *match kind {
                Kind::Call => &mut counts.calls,
                Kind::Chunk => &mut counts.chunks,
                Kind::Sending | Kind::Note | Kind::Dead => &mut counts.marks,
                Kind::Head | Kind::Fact | Kind::History => &mut counts.others,
            } += 1;
            if let Ok(head) = record::open::<Head>(Kind::Head, value) {
                highest = highest.max_by_commit(head);
            }
        }
        Err(Unreadable::Newer { .. }) => counts.newer += 1,
        Err(Unreadable::Damaged(_)) => counts.scarred += 1,
    })?;
    Ok((counts, highest))
}

trait MaxByCommit {
    fn max_by_commit(self, other: Head) -> Self;
}

impl MaxByCommit for Option<Head> {
    fn max_by_commit(self, other: Head) -> Self {
        Some(self.filter(|head| head.commit > other.commit).unwrap_or(other))
    }
}

/// Where a value lies in the log.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    length: usize,
}

#[derive(Default)]
struct Index {
    /// By sequence and `op_id`: a sequence may have been given out twice where a mark was lost.
    headers: BTreeMap<(u64, u128), Place>,
    chunks: HashMap<(u64, u32), Place>,
    dead: HashMap<u64, DeadMark>,
}

/// Hands every whole call in the raw log of a set-aside store to `each`, ascending by sequence, each
/// once. `db` is the folder that was set aside (`db.damaged-…`). Calls that were delivered or
/// removed long ago are among them, so nothing of this may be replayed without an operator.
///
/// # Errors
/// `NoStore` where the folder holds no log; `Io` where it cannot be read.
pub fn repair(db: &Path, each: &mut dyn FnMut(ExportedCall)) -> Result<RepairSummary, CheckError> {
    let log = db.join("db");
    if !log.try_exists()? {
        return Err(CheckError::NoStore(db.to_owned()));
    }
    let mut index = Index::default();
    let mut summary = RepairSummary::default();
    walk(&log, &mut |_, _| {}, &mut |offset, found| match found {
        Ok((kind, value)) => index.note(kind, value, Place { offset, length: value.len() }),
        Err(_) => summary.scarred += 1,
    })?;
    let file = File::open(&log)?;
    for ((seq, _), place) in &index.headers {
        match index.join(&file, *seq, *place)? {
            Some(call) => {
                summary.calls += 1;
                each(call);
            }
            None => summary.incomplete += 1,
        }
    }
    Ok(summary)
}

impl Index {
    fn note(&mut self, kind: Kind, value: &[u8], place: Place) {
        match kind {
            Kind::Call => {
                if let Ok(call) = record::open::<CallRecord<'_>>(kind, value) {
                    self.headers.insert((call.seq, call.op_id), place);
                }
            }
            Kind::Chunk => {
                if let Ok(chunk) = record::open::<ChunkRecord<'_>>(kind, value) {
                    self.chunks.insert((chunk.seq, chunk.index), place);
                }
            }
            Kind::Dead => {
                if let Ok(mark) = record::open::<DeadRecord<'_>>(kind, value)
                    && let Some(whole) = dead_letters::decode(mark.seq, value)
                {
                    self.dead.insert(mark.seq, whole);
                }
            }
            Kind::Head | Kind::Sending | Kind::Note | Kind::Fact | Kind::History => {}
        }
    }

    /// The call whose header lies at `place`, if all of its body is there and whole.
    fn join(&self, log: &File, seq: u64, place: Place) -> io::Result<Option<ExportedCall>> {
        let value = read(log, place)?;
        let Ok((mut call, header)) = queue::decode_call(seq, &value) else { return Ok(None) };
        let mut body = header.inline.to_vec();
        for index in 0..header.chunks {
            let Some(place) = self.chunks.get(&(seq, index)) else { return Ok(None) };
            let chunk = read(log, *place)?;
            let Ok(data) = queue::decode_chunk(seq, index, &chunk) else { return Ok(None) };
            body.extend_from_slice(data);
        }
        if body.len() as u64 != header.body_len || crc32fast::hash(&body) != header.body_crc {
            return Ok(None);
        }
        call.dead = self.dead.get(&seq).cloned();
        Ok(Some(ExportedCall { call, body: body.into(), state: ExportedState::Salvaged }))
    }
}

fn read(log: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut value = vec![0; place.length];
    log.read_exact_at(&mut value, place.offset)?;
    Ok(value)
}

/// What stands behind a magic number: a whole value, or why there is none.
type Found<'a> = Result<(Kind, &'a [u8]), Unreadable>;

/// Visits every envelope in the file, with its offset.
fn walk(
    log: &Path,
    progress: &mut dyn FnMut(u64, u64),
    visit: &mut dyn FnMut(u64, Found<'_>),
) -> io::Result<()> {
    let mut file = File::open(log)?;
    let total = file.metadata()?.len();
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW + VALUE_MAX);
    let mut start = 0_u64;
    loop {
        let limit = (WINDOW + VALUE_MAX - window.len()) as u64;
        let is_last = file.by_ref().take(limit).read_to_end(&mut window)? as u64 != limit;
        let done = visit_window(&window, start, is_last, visit);
        start += done as u64;
        progress(start, total.max(start));
        if is_last {
            return Ok(());
        }
        window.drain(..done);
    }
}

/// Visits what lies wholly in the window; returns how far it got.
fn visit_window(
    window: &[u8],
    start: u64,
    is_last: bool,
    visit: &mut dyn FnMut(u64, Found<'_>),
) -> usize {
    let end = if is_last { window.len() } else { window.len().saturating_sub(VALUE_MAX) };
    let mut at = 0;
    while at < end {
        let Some(rest) = window.get(at..) else { break };
        let Some(skip) = rest.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) else {
            return end.max(at);
        };
        at += skip;
        if at >= end {
            break;
        }
        let value = rest.get(skip..).unwrap_or_default();
        let found = record::peel(value);
        let length = found.as_ref().map_or(1, |sealed| sealed.length);
        let found =
            found.map(|sealed| (sealed.kind, value.get(..sealed.length).unwrap_or_default()));
        visit(start + at as u64, found);
        at += length;
    }
    at
}
