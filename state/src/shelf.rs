//! Large cached replies, each in a file of its own, so that they take no memory until they are asked for.
//!
//! # Files
//! ```text
//! magic "FBXL" | version u16 | length of the header u32 | crc32 of the header u32 | header | blocks
//! block: length u32 | crc32 u32 | at most 256 KiB of the reply
//! ```
//! The header is bincode: what was asked of which target, when it was answered, and how long the reply is.
//!
//! # Rules
//! 1. One thread writes and removes files; callers and the cache never wait for it. It begins with the first reply.
//! 2. The cache knows a reply once all of it was written. A file that a crash cut short is removed by the next start.
//! 3. All files together take at most [`ShelfSettings::bytes`]; the oldest goes first. Nothing is written that would
//!    leave the disk less free space than [`ShelfSettings::floor`]: the queue comes first.
//! 4. A file goes with the last handle to it, however the cache lets go of that. Who is reading it reads on.
//! 5. Nothing is synced. A block that is not what was written breaks the answer off, and its file goes.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, DirBuilder, File},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::statvfs;

use crate::{
    target::Target,
    units::{LaneId, UnixMillis},
};

const MAGIC: &[u8; 4] = b"FBXL";
const VERSION: u16 = 1;
/// Bytes of a reply that are checked and answered at once.
pub const BLOCK: usize = 256 * 1024;
/// A longer header is not one of ours.
const HEADER_MAX: usize = 4 << 20;

/// The folder of a shelf, and how much it takes.
#[derive(Clone, Debug)]
pub struct ShelfSettings {
    /// Its folder; nothing else may be in it.
    pub dir: PathBuf,
    /// Whether it outlives the daemon.
    pub lasts: bool,
    /// Bytes of all files; 0 keeps nothing.
    pub bytes: u64,
    /// Free bytes that the disk must keep.
    pub floor: u64,
}

/// What a reply on the shelf is the answer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The server.
    pub target: Target,
    /// The lane that it was read from.
    pub lane: LaneId,
    /// The read in its canonical form.
    pub key: Bytes,
    /// When it was answered.
    pub at: UnixMillis,
    /// When the value ends at the backend, if that is known.
    pub until: Option<UnixMillis>,
}

#[derive(bincode::Encode, bincode::Decode)]
struct Header {
    target: String,
    lane: u64,
    key: Vec<u8>,
    at: u64,
    until: Option<u64>,
    length: u64,
}

/// The folder and its thread. Closing it keeps its files, if they are to last.
pub struct Shelf(Arc<Core>);

struct Core {
    dir: PathBuf,
    lasts: bool,
    floor: u64,
    most: AtomicU64,
    used: AtomicU64,
    /// Oldest first.
    order: Mutex<VecDeque<Weak<Shelved>>>,
    jobs: Mutex<Option<Sender<Job>>>,
    next: AtomicU64,
    closed: AtomicBool,
}

enum Job {
    Write(Box<Writing>),
    Remove(PathBuf),
}

struct Writing {
    core: Arc<Core>,
    label: Label,
    value: Bytes,
    done: Box<dyn FnOnce(Arc<Shelved>) + Send>,
}

/// A reply in a file.
pub struct Shelved {
    core: Arc<Core>,
    path: PathBuf,
    /// Bytes of the reply.
    length: u64,
    gone: AtomicBool,
}

/// A reply that is being read.
pub struct Reading {
    of: Arc<Shelved>,
    file: File,
    left: u64,
}

impl Shelf {
    /// An empty shelf; files in its folder are left alone until [`Shelf::restore`].
    #[must_use]
    pub fn new(settings: ShelfSettings) -> Self {
        let ShelfSettings { dir, lasts, bytes, floor } = settings;
        Self(Arc::new(Core {
            dir,
            lasts,
            floor,
            most: AtomicU64::new(bytes),
            used: AtomicU64::new(0),
            order: Mutex::default(),
            jobs: Mutex::default(),
            next: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }))
    }

    /// Takes another limit; what is too much goes with the next reply that is written.
    pub fn set_bytes(&self, bytes: u64) {
        self.0.most.store(bytes, Ordering::Relaxed);
    }

    /// Whether a reply of so many bytes may find a place.
    #[must_use]
    pub fn takes(&self, bytes: u64) -> bool {
        bytes <= self.0.most.load(Ordering::Relaxed)
    }

    /// Bytes of the replies on it.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Writes a reply, and hands it to `done` on the shelf's thread once that is done. It is not called if the reply
    /// finds no room.
    pub fn put(
        &self,
        label: Label,
        value: Bytes,
        done: impl FnOnce(Arc<Shelved>) + Send + 'static,
    ) {
        let core = Arc::clone(&self.0);
        self.0.job(Job::Write(Box::new(Writing { core, label, value, done: Box::new(done) })));
    }

    /// What an earlier run has left of the answers of `target`; everything else in the folder is removed, but for what
    /// this run has put there. Blocks.
    pub fn restore(&self, target: &Target) -> Vec<(Label, Arc<Shelved>)> {
        let own: Vec<_> = self.0.order.lock().iter().filter_map(Weak::upgrade).collect();
        let mut newest: HashMap<(LaneId, Bytes), (Label, Arc<Shelved>)> = HashMap::new();
        for entry in fs::read_dir(&self.0.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if own.iter().any(|shelved| shelved.path == path) {
                continue;
            }
            let whole = if self.0.lasts { self.0.taken_back(&path, target) } else { None };
            let Some((label, shelved)) = whole else {
                remove(&path);
                continue;
            };
            let key = (label.lane, label.key.clone());
            let older = newest.get(&key).is_some_and(|(held, _)| held.at < label.at);
            if older || !newest.contains_key(&key) {
                newest.insert(key, (label, shelved));
            }
        }
        let mut found: Vec<_> = newest.into_values().collect();
        found.sort_by_key(|(label, _)| label.at);
        self.0.order.lock().extend(found.iter().map(|(_, shelved)| Arc::downgrade(shelved)));
        found
    }

    /// The daemon stops: from now on files stay if they are to last.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }
}

impl Core {
    /// Hands `job` to the thread, which begins with the first. Without a thread nothing is kept.
    fn job(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        if jobs.is_none() {
            let (sender, receiver) = mpsc::channel::<Job>();
            let thread = std::thread::Builder::new().name("fusebox-shelf".into());
            let work = move || receiver.into_iter().for_each(Job::run);
            match thread.spawn(work) {
                Ok(_) => *jobs = Some(sender),
                Err(error) => {
                    tracing::warn!(%error, "large replies are not cached: their thread could not be started");
                    return;
                }
            }
        }
        if let Some(jobs) = &*jobs {
            jobs.send(job).ok();
        }
    }

    /// Makes room for so many bytes; whether there is.
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let most = self.most.load(Ordering::Relaxed);
        while bytes.saturating_add(self.used.load(Ordering::Relaxed)) > most {
            let Some(oldest) = self.order.lock().pop_front() else { return Ok(false) };
            if let Some(oldest) = oldest.upgrade() {
                oldest.discard();
            }
        }
        let stat = statvfs(&self.dir)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(free >= self.floor.saturating_add(bytes))
    }

    /// The reply in a file that an earlier run wrote, unless that is not whole or of another target.
    fn taken_back(self: &Arc<Self>, path: &Path, target: &Target) -> Option<(Label, Arc<Shelved>)> {
        let mut file = File::open(path).ok()?;
        let (header, offset) = read_header(&mut file).ok()?;
        let blocks = header.length.div_ceil(BLOCK as u64);
        let is_whole = file.metadata().ok()?.len() == offset + header.length + 8 * blocks;
        let fits =
            header.length + self.used.load(Ordering::Relaxed) <= self.most.load(Ordering::Relaxed);
        if !is_whole || !fits || header.target != target.as_str() {
            return None;
        }
        let label = Label {
            target: target.clone(),
            lane: LaneId(header.lane),
            key: header.key.into(),
            at: UnixMillis::new(header.at),
            until: header.until.map(UnixMillis::new),
        };
        // Names go on behind those that are there.
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok())?;
        self.next.fetch_max(number + 1, Ordering::Relaxed);
        Some((label, self.shelved(path.to_owned(), header.length)))
    }

    fn shelved(self: &Arc<Self>, path: PathBuf, length: u64) -> Arc<Shelved> {
        self.used.fetch_add(length, Ordering::Relaxed);
        Arc::new(Shelved { core: Arc::clone(self), path, length, gone: AtomicBool::new(false) })
    }
}

impl Job {
    fn run(self) {
        match self {
            Self::Remove(path) => remove(&path),
            Self::Write(writing) => {
                let Writing { core, label, value, done } = *writing;
                let number = core.next.fetch_add(1, Ordering::Relaxed);
                let path = core.dir.join(number.to_string());
                match write(&core, &path, &label, &value) {
                    Ok(true) => {
                        let shelved = core.shelved(path, value.len() as u64);
                        let mut order = core.order.lock();
                        order.retain(|it| it.strong_count() > 0);
                        order.push_back(Arc::downgrade(&shelved));
                        drop(order);
                        done(shelved);
                    }
                    Ok(false) => {
                        tracing::debug!("a large reply is not cached: the disk has no room");
                    }
                    Err(error) => {
                        // What was there before is another's.
                        if error.kind() != io::ErrorKind::AlreadyExists {
                            remove(&path);
                        }
                        tracing::debug!(%error, "a large reply is not cached");
                    }
                }
            }
        }
    }
}

/// Writes a file; whether there was room.
fn write(core: &Core, path: &Path, label: &Label, value: &Bytes) -> io::Result<bool> {
    DirBuilder::new().mode(0o700).recursive(true).create(&core.dir)?;
    if !core.make_room(value.len() as u64)? {
        return Ok(false);
    }
    let header = Header {
        target: label.target.as_str().to_owned(),
        lane: label.lane.0,
        key: label.key.to_vec(),
        at: label.at.get(),
        until: label.until.map(UnixMillis::get),
        length: value.len() as u64,
    };
    let header = bincode::encode_to_vec(&header, bincode::config::standard())
        .map_err(|error| io::Error::other(error.to_string()))?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut out = BufWriter::new(file);
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&length(&header))?;
    out.write_all(&crc32fast::hash(&header).to_le_bytes())?;
    out.write_all(&header)?;
    for block in value.chunks(BLOCK) {
        out.write_all(&length(block))?;
        out.write_all(&crc32fast::hash(block).to_le_bytes())?;
        out.write_all(block)?;
    }
    out.flush()?;
    Ok(true)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, path = %path.display(), "a cached reply was not removed");
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn number(file: &mut File) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// The header, and the offset of the blocks.
fn read_header(file: &mut File) -> io::Result<(Header, u64)> {
    let mut start = [0; 6];
    file.read_exact(&mut start)?;
    if !start.starts_with(MAGIC) || !start.ends_with(&VERSION.to_le_bytes()) {
        return Err(damaged("the file is not a cached reply of this version"));
    }
    let length = number(file)? as usize;
    let checksum = number(file)?;
    if length > HEADER_MAX {
        return Err(damaged("the header is too long"));
    }
    let mut header = vec![0; length];
    file.read_exact(&mut header)?;
    if crc32fast::hash(&header) != checksum {
        return Err(damaged("the header's checksum is wrong"));
    }
    let config = bincode::config::standard().with_limit::<HEADER_MAX>();
    let (header, _) = bincode::decode_from_slice(&header, config)
        .map_err(|error| damaged(&format!("the header does not decode: {error}")))?;
    Ok((header, 14 + length as u64))
}

impl Shelved {
    /// Bytes of the reply.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether its file was given up while handles to it are held.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Begins to read it. Blocks.
    ///
    /// # Errors
    /// What the file system says, or [`io::ErrorKind::InvalidData`] for a file that is damaged; then it is gone.
    pub fn open(self: &Arc<Self>) -> io::Result<Reading> {
        let open = || -> io::Result<File> {
            if self.is_gone() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let mut file = File::open(&self.path)?;
            read_header(&mut file)?;
            Ok(file)
        };
        let file = open().inspect_err(|_| self.discard())?;
        Ok(Reading { of: Arc::clone(self), file, left: self.length })
    }

    /// Gives its file up.
    fn discard(&self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            self.core.used.fetch_sub(self.length, Ordering::Relaxed);
            self.core.job(Job::Remove(self.path.clone()));
        }
    }
}

impl Drop for Shelved {
    fn drop(&mut self) {
        if !(self.core.lasts && self.core.closed.load(Ordering::Relaxed)) {
            self.discard();
        }
    }
}

impl std::fmt::Debug for Shelved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelved").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Reading {
    /// The next block, of at most [`BLOCK`] bytes; `None` at the end. Blocks.
    ///
    /// # Errors
    /// As [`Shelved::open`].
    pub fn next_block(&mut self) -> io::Result<Option<Bytes>> {
        self.block().inspect_err(|_| self.of.discard())
    }

    fn block(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let length = number(&mut self.file)?;
        let checksum = number(&mut self.file)?;
        if length as usize > BLOCK || length == 0 || u64::from(length) > self.left {
            return Err(damaged("a block has an impossible length"));
        }
        let mut block = vec![0; length as usize];
        self.file.read_exact(&mut block)?;
        if crc32fast::hash(&block) != checksum {
            return Err(damaged("a block's checksum is wrong"));
        }
        self.left -= u64::from(length);
        Ok(Some(block.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> ShelfSettings {
        ShelfSettings { dir: dir.join("results"), lasts: true, bytes: 1 << 20, floor: 0 }
    }

    fn label(key: &'static str, at: u64) -> Label {
        Label {
            target: "t".into(),
            lane: LaneId(7),
            key: Bytes::from_static(key.as_bytes()),
            at: UnixMillis::new(at),
            until: None,
        }
    }

    fn put(shelf: &Shelf, label: Label, value: Bytes) -> Option<Arc<Shelved>> {
        let (done, told) = mpsc::channel();
        shelf.put(label, value, move |shelved| drop(done.send(shelved)));
        told.recv().ok()
    }

    fn value(bytes: usize) -> Bytes {
        (0..=250_u8).cycle().take(bytes).collect()
    }

    fn read(shelved: &Arc<Shelved>) -> io::Result<Vec<u8>> {
        let mut reading = shelved.open()?;
        let mut all = Vec::new();
        while let Some(block) = reading.next_block()? {
            all.extend_from_slice(&block);
        }
        Ok(all)
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir.join("results")).map_or(0, Iterator::count)
    }

    /// Waits until everything that was asked of the shelf is done.
    fn settle(shelf: &Shelf) {
        let (done, told) = mpsc::channel::<()>();
        shelf.put(label("last", 99), Bytes::from_static(b"x"), move |shelved| {
            drop(shelved);
            drop(done);
        });
        told.recv().unwrap_err();
    }

    #[test]
    fn what_is_put_is_read_and_goes_with_its_last_handle() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(settings(dir.path()));
        for length in [1, BLOCK, BLOCK + 1, 700_000] {
            let shelved = put(&shelf, label("k", 1), value(length)).unwrap();
            assert_eq!(read(&shelved).unwrap(), value(length));
            assert_eq!(shelf.used(), length as u64);
            drop(shelved);
            assert_eq!(shelf.used(), 0);
            assert!(shelf.0.order.lock().len() <= 1, "what is gone is forgotten");
        }
        settle(&shelf);
        settle(&shelf);
        assert!(files(dir.path()) <= 1, "{} are left", files(dir.path()));
    }

    #[test]
    fn it_stays_within_its_bytes_and_the_oldest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(settings(dir.path()));
        let first = put(&shelf, label("a", 1), value(500_000)).unwrap();
        let second = put(&shelf, label("b", 2), value(500_000)).unwrap();
        let mut begun = first.open().unwrap();
        let third = put(&shelf, label("c", 3), value(500_000)).unwrap();
        assert!(first.is_gone() && !second.is_gone() && !third.is_gone());
        assert!(shelf.used() <= 1 << 20);
        assert_eq!(begun.next_block().unwrap().unwrap().len(), BLOCK, "who reads it reads on");
        assert!(put(&shelf, label("d", 4), value((1 << 20) + 1)).is_none());
        let floored = ShelfSettings { floor: u64::MAX, ..settings(dir.path()) };
        assert!(put(&Shelf::new(floored), label("e", 5), value(10)).is_none());
    }

    #[test]
    fn what_lasts_is_taken_back_and_what_is_not_whole_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(settings(dir.path()));
        let held: Vec<_> = [("a", 1), ("a", 2), ("b", 3)]
            .map(|(key, at)| put(&shelf, label(key, at), value(300_000)).unwrap())
            .into();
        shelf.close();
        drop((held, shelf));
        let results = dir.path().join("results");
        fs::write(results.join("strange"), b"?").unwrap();
        let long = fs::metadata(results.join("2")).unwrap().len();
        fs::copy(results.join("2"), results.join("7")).unwrap();
        File::options().write(true).open(results.join("7")).unwrap().set_len(long - 1).unwrap();

        let shelf = Shelf::new(settings(dir.path()));
        let back = shelf.restore(&"t".into());
        let labels: Vec<_> = back.iter().map(|(label, _)| label.clone()).collect();
        assert_eq!(labels, [label("a", 2), label("b", 3)]);
        assert!(back.iter().all(|(_, shelved)| read(shelved).unwrap() == value(300_000)));
        let next = put(&shelf, label("c", 4), value(10)).unwrap();
        assert_eq!((read(&next).unwrap(), files(dir.path())), (value(10).to_vec(), 3));
        shelf.close();
        drop((back, next, shelf));
        assert!(Shelf::new(settings(dir.path())).restore(&"another".into()).is_empty());
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn what_this_run_has_put_there_stays() {
        for lasts in [true, false] {
            // What goes with its last handle goes in the background.
            let dir = tempfile::tempdir().unwrap();
            let shelf = Shelf::new(ShelfSettings { lasts, ..settings(dir.path()) });
            let held = put(&shelf, label("a", 1), value(10)).unwrap();
            assert!(shelf.restore(&"t".into()).is_empty());
            assert_eq!(read(&held).unwrap(), value(10));
        }
    }

    #[test]
    fn a_damaged_block_is_an_error_and_its_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(settings(dir.path()));
        let shelved = put(&shelf, label("k", 1), value(600_000)).unwrap();
        let file = dir.path().join("results/0");
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let mut reading = shelved.open().unwrap();
        assert!(reading.next_block().unwrap().is_some() && reading.next_block().unwrap().is_some());
        assert_eq!(reading.next_block().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(shelved.is_gone());
        assert!(shelved.open().is_err());
    }
}
