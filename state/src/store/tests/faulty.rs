//! What the harnesses of failing disks have in common: a child process that works with a store and says what it was
//! promised, and a judge that knows from its words what a store may hold.
//!
//! The child is this test binary. It prints a line before it asks for something and one when it was answered, each by
//! one write to its standard output, so that the lines are in a trace among the file operations:
//!
//! ```text
//! @ > a 12 150        asked: append sequence 12 with a body of 150 bytes
//! @ < ok a 12 150     answered: it is on the disk      (no: it is not; maybe: nobody knows)
//! @ = 3 4 12          the store holds these, it says (at an open, and when it serves again)
//! @ r 4 sum 77        the body of 4 was read, and this is its checksum
//! @ ! …               the store reported damage
//! ```

pub(super) mod child;
pub(super) mod model;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::*;

/// Whether everything is to be tried, not a sample.
pub(super) fn everything() -> bool {
    std::env::var("FUSEBOX_TEST_FAULTS").is_ok_and(|what| what == "all")
}

/// A folder on a file system in memory, if there is one: the harnesses care for what is written, not for a disk.
pub(super) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// The body of a call: it depends on what it is called, and on its length.
pub(super) fn content(name: u64, length: usize) -> Vec<u8> {
    body(name, length)
}

/// This test binary as a child that plays `part` with the store below `dir`, behind `wrapper` (strace, say).
pub(super) fn command(wrapper: &[String], part: &str, dir: &Path) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(this);
            command
        }
        None => Command::new(this),
    };
    command
        .args(["--exact", "store::tests::faulty::child::plays_its_part"])
        .args(["--nocapture", "--test-threads=1"])
        .env(child::PART, part)
        .env(child::DIR, dir)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null());
    command
}

/// Runs a child to its end; returns its lines and what it wrote to standard error.
pub(super) fn run(wrapper: &[String], part: &str, dir: &Path) -> (Vec<String>, String) {
    let output = command(wrapper, part, dir).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(said).map(str::to_owned).collect();
    (lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a line of the child says; libtest prints around them.
pub(super) fn said(line: &str) -> Option<&str> {
    line.find("@ ").and_then(|at| line.get(at + 2..))
}

/// Copies a folder.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "ballast" {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A store that a process filled and left without closing it, and what it was promised.
pub(super) struct Template {
    pub(super) dir: tempfile::TempDir,
    pub(super) model: model::Model,
}

impl Template {
    pub(super) fn empty() -> Self {
        Self { dir: scratch(), model: model::Model::default() }
    }

    /// Filled by `part`.
    pub(super) fn filled(part: &str) -> Self {
        let dir = scratch();
        let (lines, errors) = run(&[], part, dir.path());
        let mut model = model::Model::default();
        for line in &lines {
            model.hear(line).unwrap();
        }
        assert!(lines.last().is_some_and(|line| line == "end"), "{lines:?} {errors}");
        Self { dir, model }
    }

    /// The same, with one bit flipped in the newest header of a call that waits: it is lost, and must be reported.
    pub(super) fn flipped(part: &str) -> Self {
        let mut template = Self::filled(part);
        let seq = template.model.certain().into_iter().nth(3).unwrap();
        let raw = raw::Raw::read(&template.dir.path().join("store/db"), &mut |_, _| {}).unwrap();
        let place = raw.newest(&raw::Key::Call(seq), u64::MAX).unwrap().place;
        let path = template.dir.path().join("store/db/db");
        let mut bytes = fs::read(&path).unwrap();
        let value = raw.load(place).unwrap();
        let places: Vec<usize> = memchr::memmem::find_iter(&bytes, &value).collect();
        for at in places {
            bytes[at + value.len() - 1] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
        template.model.lose(seq);
        template
    }

    /// The same, as the first release would have left it.
    pub(super) fn of_the_first_format(part: &str) -> Self {
        let template = Self::filled(part);
        let dir = template.dir.path();
        // That release knew no packs: a compaction takes them out.
        let opened = Store::open(StoreSettings { packed: false, ..settings(dir) }).unwrap();
        wait(|done| opened.store.compact(done)).unwrap();
        drop(opened);
        let found = contents(dir);
        let db = dir.join("store/db");
        fs::remove_dir_all(&db).unwrap();
        let sled = guard::open_sled(&db).unwrap().unwrap();
        let mut first = head::FirstHead::default();
        for (key, value) in found {
            let sealed = record::peel(&value).unwrap();
            match sealed.kind {
                record::Kind::Head => {
                    let Ok(head::AnyHead::Vouching(head)) = head::decode(&value) else { panic!() };
                    first = head::FirstHead { commit: head.commit, last_seq: head.last_seq };
                    let value = record::seal(record::Kind::Head, &first, 32).unwrap().stamp(0);
                    let value = record::seal_again(&value, record::FIRST).unwrap().stamp(0);
                    sled.insert(key, value).unwrap();
                }
                record::Kind::Gone | record::Kind::Void => {}
                _ => {
                    let value = record::seal_again(&value, record::FIRST).unwrap().stamp(0);
                    sled.insert(key, value).unwrap();
                }
            }
        }
        sled.flush().unwrap();
        drop(sled);
        fs::write(dir.join("store/mark"), mark::encode_first(first)).unwrap();
        template
    }

    /// A copy in `dir`, which is made again.
    pub(super) fn copy_to(&self, dir: &Path) -> model::Model {
        space::remove_folder(dir).unwrap();
        copy(self.dir.path(), dir);
        self.model.clone()
    }
}

/// Opens the store below `dir` and compares it with what may be there. Returns what it found and reported.
pub(super) fn judge(dir: &Path, model: &model::Model, what: &str) -> Vec<Finding> {
    let opened = Store::open(StoreSettings { disk_floor: u64::MAX / 2, ..settings(dir) });
    let opened = opened.unwrap_or_else(|error| {
        panic!("{what}: it does not open: {error}; kept in {}", keep(dir).display())
    });
    model.judge(&opened).unwrap_or_else(|why| {
        let kept = keep(dir);
        panic!("{what}: {why}; findings {:?}; kept in {}", opened.findings, kept.display())
    });
    opened.findings.clone()
}

/// A copy of a folder for whoever looks into a failure.
fn keep(dir: &Path) -> PathBuf {
    let kept = std::env::temp_dir().join(format!("fusebox-failed-{}", std::process::id()));
    drop(fs::remove_dir_all(&kept));
    copy(dir, &kept);
    kept
}
