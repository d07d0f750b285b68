//! Looking at a store offline, without changing anything in it.
//!
//! sled writes when it opens, so it is not used here: the raw log is read, as an open reads it first (`raw.rs`), and
//! what is live is proven in the same way (`plan.rs`), so that a check says what the next start will say. A store that
//! a daemon has open may be checked, too; one that moves under the reading eye is read again.
//!
//! A commit that a crash cut short was never acknowledged. The next start keeps what of it is whole, so a check counts
//! it and an export has it.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

pub use super::raw::RawCounts;
use super::{
    Counts, Finding,
    calls::{CallHeader, StoredCall},
    dead_letters,
    mark::{self, Reading},
    open::{Look, look},
    plan::Plan,
    queue,
    raw::{Key, Position, Raw, Value},
    rebuild,
    record::{self, Kind},
    scan::{self, ScanFailure, Scanned},
    space,
};
use crate::units::{LaneId, Lanes};

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckVerdict {
    /// Everything that should be there is, and reads.
    Whole,
    /// There is no store, or one that never held anything.
    Empty,
    /// Something that was acknowledged may be lost: see the findings.
    Damaged,
    /// A newer version wrote it; only that version can judge it.
    NewerFormat,
}

/// What a check found. Sizes are in bytes.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CheckReport {
    /// The result in a word.
    pub verdict: CheckVerdict,
    /// Whether a daemon has the store open.
    pub live: bool,
    /// Size of sled's log.
    pub log_bytes: u64,
    /// Commit number that the mark asks for.
    pub marked_commit: Option<u64>,
    /// Commit number that the store has: the one of which everything was proven to be there, else the highest found.
    pub commit: Option<u64>,
    /// What the raw log holds, removed values included.
    pub raw: RawCounts,
    /// What is live in it; absent if that is not known.
    pub counts: Option<Counts>,
    /// Why it is not known what is live in it.
    pub not_proven: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Stores that were set aside, by folder name, for `repair`.
    pub set_aside: Vec<String>,
}

/// A call read offline, with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedCall {
    /// The call.
    pub call: StoredCall,
    /// Its body, checksum verified.
    pub body: Bytes,
    /// What is known of its state.
    pub state: ExportedState,
}

/// What is known of the state of an exported call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportedState {
    /// It waits for replay.
    Pending,
    /// It was put on the wire; the outcome is not known.
    Sending,
    /// It is a dead letter.
    Dead,
    /// It was found in a raw log and may have been delivered or removed long ago.
    Salvaged,
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExportSummary {
    /// Calls handed over.
    pub calls: u64,
    /// Records that are damaged and were left out.
    pub bad: u64,
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

/// Why an export or a repair did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no store in that folder.
    #[error("there is no store in {0}")]
    NoStore(PathBuf),
    /// What is live is not known: `repair` reads everything that the raw log has.
    #[error("cannot find out which of its calls are waiting: {0}")]
    NotProven(String),
    /// A newer version wrote it.
    #[error("the store has format {0}, which this version does not know")]
    NewerFormat(u16),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The names of the folders in `dir` with what was set aside of its store. [`repair`] reads such a folder.
pub fn asides(dir: &Path) -> Vec<String> {
    let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    space::asides(dir).iter().filter_map(name).collect()
}

/// Checks the store in `dir` without writing anything. `progress` hears bytes read and bytes in all.
pub fn check(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> CheckReport {
    let mut report = CheckReport {
        verdict: CheckVerdict::Whole,
        live: is_live(dir),
        log_bytes: 0,
        marked_commit: None,
        commit: None,
        raw: RawCounts::default(),
        counts: None,
        not_proven: None,
        findings: Vec::new(),
        set_aside: asides(dir),
    };
    report.verdict = match steady(dir, progress) {
        Ok((db, marked, seen)) => report.judge(&db, marked, seen),
        Err(error) => {
            let detail = error.to_string();
            report.not_proven = Some(detail.clone());
            report.findings.push(Finding::Unreadable { detail });
            CheckVerdict::Damaged
        }
    };
    report
}

/// Looks at a store, again if a daemon changes it meanwhile.
fn steady(dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> io::Result<(PathBuf, Reading, Look)> {
    let mut tries = if is_live(dir) { 5 } else { 1 };
    loop {
        tries -= 1;
        // The mark comes first: a store that lives moves on, and is never behind an older mark.
        let marked = mark::read(dir)?;
        let db = rebuild::standing(dir, marked)?.folder(dir);
        let seen = look(&db, marked, progress)?;
        let is_settled = match &seen {
            Look::Planned(_, plan) => plan.is_exact(),
            Look::Unprovable(..) => false,
            _ => true,
        };
        if is_settled || tries == 0 {
            return Ok((db, marked, seen));
        }
    }
}

impl CheckReport {
    fn judge(&mut self, db: &Path, marked: Reading, seen: Look) -> CheckVerdict {
        self.findings.extend(look_around(db));
        self.marked_commit = match marked {
            Reading::At(head) => Some(head.commit),
            Reading::First(head) => Some(head.commit),
            _ => None,
        };
        let verdict = match seen {
            Look::Nothing => return CheckVerdict::Empty,
            Look::Newer(_) => return CheckVerdict::NewerFormat,
            Look::First(raw) => {
                self.counted(&raw);
                self.commit = raw.first.map(|head| head.commit);
                let behind = self.commit < self.marked_commit;
                let why = "it has the first format: the next start converts it to the current one";
                self.not_proven = Some(why.into());
                if behind {
                    let detail = "it lacks commits that were synced".into();
                    self.findings.push(Finding::Unreadable { detail });
                }
                CheckVerdict::Whole
            }
            Look::Unprovable(raw, why) => {
                self.counted(&raw);
                self.not_proven = Some(why.clone());
                self.findings.push(Finding::Unreadable { detail: why });
                CheckVerdict::Damaged
            }
            Look::Planned(raw, plan) => self.planned(&raw, plan, marked),
        };
        if self.findings.iter().any(Finding::is_damage) { CheckVerdict::Damaged } else { verdict }
    }

    fn counted(&mut self, raw: &Raw) {
        self.log_bytes = raw.bytes;
        self.raw = raw.counts;
        self.commit = raw.heads.keys().next_back().copied();
    }

    fn planned(&mut self, raw: &Raw, plan: Plan, marked: Reading) -> CheckVerdict {
        self.counted(raw);
        self.commit = Some(plan.head.commit);
        if matches!(marked, Reading::Absent | Reading::Damaged) {
            let detail = format!("the mark is {marked:?}").to_lowercase();
            self.findings.push(Finding::MarkLost { detail });
        }
        if !plan.is_exact() {
            self.findings.push(lost(&plan));
        } else if !self.live {
            self.findings.extend(plan.flaw(raw).map(|reason| Finding::Healed { reason }));
        }
        match scan_plan(raw, &shown(raw, plan)) {
            Ok(scanned) => {
                let counts = scanned.counts;
                self.counts = Some(counts);
                self.findings.extend(scanned.findings);
                let held_nothing = counts == Counts { facts: counts.facts, ..Counts::default() };
                if held_nothing && raw.counts.calls == 0 {
                    return CheckVerdict::Empty;
                }
            }
            Err(error) => self.not_proven = Some(error.to_string()),
        }
        CheckVerdict::Whole
    }
}

/// What an open would tell of a plan.
fn lost(plan: &Plan) -> Finding {
    Finding::Lost {
        calls: plan.lost.calls.iter().copied().collect(),
        notes: plan.lost.notes.iter().copied().collect(),
        dead: plan.lost.dead.iter().copied().collect(),
        facts: plan.lost.facts,
        kept: None,
    }
}

/// The values that the next open would find: those of the plan, and if it opens the log as it is, those of a commit
/// that was never completed.
fn shown(raw: &Raw, mut plan: Plan) -> Plan {
    let is_rebuilt = !plan.is_exact() || plan.flaw(raw).is_some();
    if is_rebuilt {
        return plan;
    }
    let mut shown = Vec::new();
    for (at, Value { key, place, .. }) in raw.shown_above(plan.head.commit).with_places() {
        shown.push(at);
        let Key::Call(seq) = key else { continue };
        // The chunks of a large body come in commits of their own.
        let chunks = (0..place.chunks).map(|at| Key::Chunk(*seq, at));
        shown.extend(chunks.filter_map(|key| raw.picked_newest(&key)));
    }
    plan.values.extend(shown.into_iter());
    plan
}

/// What an open's scan would find.
fn scan_plan(raw: &Raw, plan: &Plan) -> Result<Scanned, CheckError> {
    let values = plan.values.iter().map(|it| Ok((it.key.to_bytes(), raw.load(it.place)?)));
    match scan::scan_values(values) {
        Ok(scanned) => Ok(scanned),
        Err(ScanFailure::Newer(found)) => Err(CheckError::NewerFormat(found)),
        Err(ScanFailure::Broken(why)) => Err(CheckError::NotProven(why)),
    }
}

/// Hands every pending and dead call of the store in `dir` to `each`, ascending by sequence. Before that, `progress`
/// hears bytes read and bytes in all.
///
/// # Errors
/// See [`CheckError`]; nothing was handed over then.
pub fn export(
    dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
    each: &mut dyn FnMut(ExportedCall),
) -> Result<ExportSummary, CheckError> {
    let (db, _, seen) = steady(dir, progress)?;
    let (raw, plan) = match seen {
        Look::Planned(raw, plan) => {
            let plan = shown(&raw, plan);
            (raw, plan)
        }
        Look::Nothing if db.join("db").try_exists()? => return Ok(ExportSummary::default()),
        Look::Nothing => return Err(CheckError::NoStore(dir.to_owned())),
        Look::Newer(found) => return Err(CheckError::NewerFormat(found)),
        Look::First(_) => {
            let why = "it has the first format; the next start converts it to the current one";
            return Err(CheckError::NotProven(why.into()));
        }
        Look::Unprovable(_, why) => return Err(CheckError::NotProven(why)),
    };
    let mut in_turn = InTurn { each, held: Vec::new(), lanes: HashSet::new() };
    let scanned = scan_plan(&raw, &plan)?;
    let lost = plan.lost.calls.len() as u64;
    let mut summary = ExportSummary { calls: 0, bad: scanned.counts.bad + lost };
    for call in scanned.calls {
        let place = plan.values.get(&Key::Call(call.seq)).map(|it| it.place);
        let chunk = |index| plan.values.get(&Key::Chunk(call.seq, index)).map(|it| it.place);
        let whole = match place {
            Some(place) => whole(&raw, call.seq, place, &chunk)?,
            None => None,
        };
        let Some((stored, body)) = whole else {
            summary.bad += 1;
            continue;
        };
        let call = stored.marked(&call);
        let state = match (&call.dead, call.first_sent_at) {
            (Some(_), _) => ExportedState::Dead,
            (None, Some(_)) => ExportedState::Sending,
            (None, None) => ExportedState::Pending,
        };
        summary.calls += 1;
        in_turn.next(ExportedCall { call, body, state });
    }
    in_turn.end();
    Ok(summary)
}

/// Hands calls on in an order in which they may be applied one after the other, whatever the time: what is left to do of
/// a call comes behind those of its lanes that were accepted before it is due, as it does in the queue.
struct InTurn<'a> {
    each: &'a mut dyn FnMut(ExportedCall),
    held: Vec<ExportedCall>,
    /// Those of the calls that are held.
    lanes: HashSet<LaneId>,
}

impl InTurn<'_> {
    fn next(&mut self, call: ExportedCall) {
        let CallHeader { lanes, traits, accepted_at, .. } = &call.call.header;
        if traits.due().is_some() && call.call.dead.is_none() {
            self.lanes.extend(lanes.as_slice());
            self.held.push(call);
            return;
        }
        if lanes.is_all() || lanes.as_slice().iter().any(|lane| self.lanes.contains(lane)) {
            let meets = |other: &Lanes| {
                let mut both = other.as_slice().iter().filter(|it| lanes.as_slice().contains(it));
                lanes.is_all() || both.next().is_some()
            };
            let goes_first = |held: &mut ExportedCall| {
                let CallHeader { lanes, traits, .. } = &held.call.header;
                traits.due().is_some_and(|due| due <= *accepted_at) && meets(lanes)
            };
            self.held.extract_if(.., goes_first).for_each(&mut *self.each);
            self.lanes.clear();
            let left = self.held.iter().flat_map(|held| held.call.header.lanes.as_slice());
            self.lanes.extend(left);
        }
        (self.each)(call);
    }

    fn end(self) {
        self.held.into_iter().for_each(self.each);
    }
}

/// Hands every whole call in the raw log of a set-aside store to `each`, in an order in which they may be applied, each
/// once. `db` is the folder that was set aside (`db.damaged-…`). Calls that were delivered or
/// removed long ago are among them, so nothing of this may be replayed without an operator. Before the first of them,
/// `progress` hears bytes read and bytes in all.
///
/// # Errors
/// `NoStore` if the folder holds no log; `Io` if it cannot be read.
pub fn repair(
    db: &Path,
    progress: &mut dyn FnMut(u64, u64),
    each: &mut dyn FnMut(ExportedCall),
) -> Result<RepairSummary, CheckError> {
    if !db.join("db").try_exists()? {
        return Err(CheckError::NoStore(db.to_owned()));
    }
    let raw = Raw::read(db, progress)?;
    let mut in_turn = InTurn { each, held: Vec::new(), lanes: HashSet::new() };
    let mut summary = RepairSummary { scarred: raw.counts.scarred, ..RepairSummary::default() };
    for Value { key, place, .. } in raw.newest_of_each(u64::MAX).iter() {
        let Key::Call(seq) = key else { continue };
        let chunk = |index| raw.newest(&Key::Chunk(*seq, index), u64::MAX).map(|it| it.place);
        let Some((mut call, body)) = whole(&raw, *seq, *place, &chunk)? else {
            summary.incomplete += 1;
            continue;
        };
        let mark = raw.newest(&Key::Dead(*seq), u64::MAX).filter(|it| !it.place.is_void);
        if let Some(mark) = mark {
            call.dead = dead_letters::decode(*seq, &raw.load(mark.place)?).map(Box::new);
        }
        summary.calls += 1;
        in_turn.next(ExportedCall { call, body, state: ExportedState::Salvaged });
    }
    in_turn.end();
    Ok(summary)
}

/// The call whose header is at `place`, and its body, if all of it is there and whole.
fn whole(
    raw: &Raw,
    seq: u64,
    place: Position,
    chunk: &dyn Fn(u32) -> Option<Position>,
) -> io::Result<Option<(StoredCall, Bytes)>> {
    let value = raw.load(place)?;
    let Ok(sealed) = record::open(Kind::Call, &value) else { return Ok(None) };
    let Ok(header) = queue::header(seq, &sealed) else { return Ok(None) };
    let mut body = header.inline.to_vec();
    for index in 0..header.chunks {
        let Some(place) = chunk(index) else { return Ok(None) };
        let value = raw.load(place)?;
        let read = queue::with_chunk(seq, index, &value, |data| body.extend_from_slice(data));
        if read.is_err() {
            return Ok(None);
        }
    }
    let is_whole =
        body.len() as u64 == header.body_len && crc32fast::hash(&body) == header.body_crc;
    let call = queue::stored(&header, value.len()).ok().filter(|_| is_whole);
    Ok(call.map(|call| (call, body.into())))
}

/// Whether a daemon holds the store's lock. Ours is gone at once, and an open has a moment's
/// patience.
fn is_live(dir: &Path) -> bool {
    fs::File::open(dir.join("lock"))
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}

/// What else is there: blob files and leftovers of an interrupted open.
fn look_around(db: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let blobs = space::count_entries(&db.join("blobs"));
    if blobs > 0 {
        findings.push(Finding::BlobFiles { count: blobs });
    }
    let names = fs::read_dir(db).into_iter().flatten().flatten();
    for name in names.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        if name.starts_with("snap.") && name.ends_with(".generating") {
            findings.push(Finding::LeftoverSnapshot { name });
        }
    }
    findings
}
