//! The journal of what happened: lines in two files of the state directory, the older one dropped when the
//! newer is full.
//!
//! ```text
//! publish --try_send--> channel (bounded) --> one thread --> events.jsonl --full--> events.1.jsonl
//!                                                 |                (replaces the one before)
//!                                                 +--sync_data, when it is quiet or after 64 lines
//! ```
//!
//! Nobody waits for it: a line that finds the channel full is lost and counted. What is read is asked of the
//! same thread, so it holds every line that was taken before.
//!
//! | crash | what is left |
//! | --- | --- |
//! | the process is killed | every line that the thread has written; the last may be torn |
//! | the power fails | the lines that were synced: all but those of the last half second of quiet, 64 at most |
//! | between the two steps of a change of files | the older file, and no newer one: it is made |
//!
//! It is not synced line by line: what happens together with an outage would make the stores' own syncs wait,
//! and with them the callers.
//!
//! A torn line stays in its place, ends with the next line's beginning, and is passed over by readers, as is
//! anything else that they cannot read. A line that the disk has no room for is lost; the next one tries again.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;

/// The file that is written.
pub const NEWER: &str = "events.jsonl";
/// The one before it.
pub const OLDER: &str = "events.1.jsonl";
/// Bytes after which a new file is begun: some ten thousand events.
pub const FILE_BYTES: u64 = 4 << 20;
/// How long nothing is written before a sync.
const QUIET: Duration = Duration::from_millis(500);
/// Lines after which there is a sync all the same.
const UNSYNCED_MAX: u32 = 64;
/// Lines that may wait to be written.
const WAITING: usize = 4_096;

/// A message to the thread.
enum Command {
    Line(Vec<u8>),
    Read(Box<dyn FnOnce(Vec<u8>) + Send>),
    Close,
}

/// The journal. Dropping it writes and syncs what waits.
pub struct Journal {
    commands: SyncSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    lost: AtomicU64,
}

impl Journal {
    /// Opens the journal in `dir`, which is made if it is missing; a new file is begun after
    /// `file_bytes`. Also returns all lines that it holds, oldest first.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(dir: &Path, file_bytes: u64) -> io::Result<(Self, Vec<u8>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut writer =
            Writer { dir: dir.to_owned(), file: None, bytes: 0, torn: false, file_bytes };
        let past = writer.read();
        writer.torn = past.last().is_some_and(|last| *last != b'\n');
        writer.open()?;
        let (commands, receiver) = sync_channel(WAITING);
        let thread = thread::Builder::new().name("journal".into());
        let thread = thread.spawn(move || writer.run(&receiver))?;
        Ok((Self { commands, thread: Mutex::new(Some(thread)), lost: AtomicU64::new(0) }, past))
    }

    /// Adds a line, which must hold no line break. Never waits; returns how many lines were lost for want
    /// of room so far, if this is one of them.
    pub fn add(&self, mut line: Vec<u8>) -> Option<u64> {
        line.push(b'\n');
        let sent = self.commands.try_send(Command::Line(line));
        sent.is_err().then(|| self.lost.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Reads all lines, oldest first, and hands them to `done`; to nobody if the journal is closed or
    /// has more to do than it can.
    pub fn read(&self, done: impl FnOnce(Vec<u8>) + Send + 'static) {
        drop(self.commands.try_send(Command::Read(Box::new(done))));
    }

    /// Writes and syncs what waits, and ends the thread. Later lines are lost.
    pub fn close(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        // An error means that the thread has ended already.
        drop(self.commands.send(Command::Close));
        if thread.join().is_err() {
            tracing::error!("the thread of the journal panicked");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread owns.
struct Writer {
    dir: PathBuf,
    file: Option<File>,
    bytes: u64,
    /// The file ends within a line.
    torn: bool,
    file_bytes: u64,
}

impl Writer {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut unsynced = 0;
        loop {
            let command = match unsynced {
                0 => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => commands.recv_timeout(QUIET),
            };
            match command {
                Ok(Command::Line(line)) => {
                    unsynced += 1;
                    if let Err(error) = self.line(&line) {
                        let dir = self.dir.display();
                        tracing::warn!(%dir, %error, "an event could not be kept");
                    }
                }
                Ok(Command::Read(done)) => done(self.read()),
                Err(RecvTimeoutError::Timeout) => {
                    self.sync();
                    unsynced = 0;
                }
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if unsynced >= UNSYNCED_MAX {
                self.sync();
                unsynced = 0;
            }
        }
        self.sync();
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes >= self.file_bytes {
            self.sync();
            self.file = None;
            fs::rename(self.dir.join(NEWER), self.dir.join(OLDER))?;
            self.torn = false;
        }
        self.open()?;
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = Vec::with_capacity(line.len() + 1);
        if self.torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line);
        // Until it is written whole.
        self.torn = true;
        file.write_all(&bytes)?;
        self.torn = false;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let path = self.dir.join(NEWER);
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            self.bytes = file.metadata()?.len();
            self.file = Some(file);
        }
        Ok(())
    }

    fn sync(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            tracing::warn!(dir = %self.dir.display(), %error, "events could not be synced");
        }
    }

    /// Both files, in no more memory than they need. What cannot be read is left out.
    fn read(&self) -> Vec<u8> {
        // Never more than was written, also if somebody else has written there.
        let most = self.file_bytes.saturating_mul(2);
        let open = |name: &'static str| Some((name, File::open(self.dir.join(name)).ok()?));
        let files: Vec<(&str, File)> = [OLDER, NEWER].into_iter().filter_map(open).collect();
        let length = |file: &File| file.metadata().map_or(0, |data| data.len()).min(most);
        let bytes: u64 = files.iter().map(|(_, file)| length(file)).sum();
        // And the line break that a torn line may lack.
        let mut lines = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0) + 1);
        for (name, file) in files {
            if let Err(error) = file.take(most).read_to_end(&mut lines) {
                tracing::warn!(dir = %self.dir.display(), %error, "events could not be read");
            }
            if name == OLDER && lines.last().is_some_and(|last| *last != b'\n') {
                lines.push(b'\n');
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn lines(journal: &Journal) -> Vec<String> {
        let (sender, receiver) = mpsc::channel();
        journal.read(move |bytes| sender.send(bytes).unwrap());
        let bytes = receiver.recv().unwrap();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn open(dir: &Path) -> Journal {
        Journal::open(dir, 1_000).unwrap().0
    }

    #[test]
    fn what_was_added_before_is_read_and_outlives_a_close() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made");
        let journal = open(&dir);
        for line in ["a", "b"] {
            assert_eq!(journal.add(line.into()), None);
        }
        assert_eq!(lines(&journal), ["a", "b"]);
        journal.close();
        assert_eq!(journal.add("late".into()), Some(1));
        let (journal, past) = Journal::open(&dir, 1_000).unwrap();
        assert_eq!(past, b"a\nb\n");
        journal.add("c".into());
        assert_eq!(lines(&journal), ["a", "b", "c"]);
    }

    #[test]
    fn a_torn_tail_spoils_no_other_line() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        fs::write(dir.path().join(NEWER), "a\nb\nhal").unwrap();
        let journal = open(dir.path());
        journal.add("c".into());
        assert_eq!(lines(&journal), ["a", "b", "hal", "c"]);
        drop(journal);
        assert_eq!(lines(&open(dir.path())), ["a", "b", "hal", "c"]);
    }

    #[test]
    fn what_is_read_takes_no_more_memory_than_it_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path());
        for _ in 0..30 {
            journal.add(vec![b'x'; 49]);
        }
        let (sender, receiver) = mpsc::channel();
        journal.read(move |bytes| sender.send((bytes.len(), bytes.capacity())).unwrap());
        assert_eq!(receiver.recv().unwrap(), (1_500, 1_501), "two files, one of 1,000 bytes");
    }

    #[test]
    fn the_older_half_goes_when_the_newer_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path());
        for number in 0..1_000 {
            // Never more than the channel takes: the test is of the files.
            journal.add(format!("{number:09}").into_bytes());
            if number % 100 == 0 {
                lines(&journal);
            }
        }
        let kept = lines(&journal);
        assert!((100..=201).contains(&kept.len()), "{}", kept.len());
        let first: usize = kept[0].parse().unwrap();
        let wanted: Vec<String> = (first..1_000).map(|number| format!("{number:09}")).collect();
        assert_eq!(kept, wanted, "the newest, none left out, none twice");
        // A crash between the two steps of a change of files.
        drop(journal);
        fs::rename(dir.path().join(NEWER), dir.path().join(OLDER)).unwrap();
        let journal = open(dir.path());
        journal.add("next".into());
        assert_eq!(lines(&journal).last().unwrap(), "next");
    }

    #[test]
    fn a_file_that_cannot_be_written_loses_lines_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path());
        journal.add("a".into());
        lines(&journal);
        // The next change of files fails: a folder is in the way.
        fs::create_dir_all(dir.path().join(OLDER).join("x")).unwrap();
        for _ in 0..200 {
            journal.add(vec![b'x'; 10]);
        }
        let kept = lines(&journal).len();
        assert!((50..200).contains(&kept), "{kept}");
        fs::remove_dir_all(dir.path().join(OLDER)).unwrap();
        journal.add("again".into());
        assert_eq!(lines(&journal).last().unwrap(), "again");
    }
}
