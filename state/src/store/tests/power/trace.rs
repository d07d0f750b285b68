//! What strace recorded, as steps on a disk.

use std::collections::HashMap;

use super::{
    super::*,
    disk::{Cut, Disk, Node, Step},
};

/// What it must record.
pub(super) const CALLS: &str = "trace=openat,close,dup,fcntl,pwrite64,write,writev,pwritev,ftruncate,fallocate,fsync,\
    fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,copy_file_range,sendfile,\
    link,linkat,symlink,truncate,msync,mmap";

/// An open file or folder.
#[derive(Clone, Copy)]
struct Open {
    node: Node,
    position: usize,
    /// It was opened behind so many steps, or has heard of what failed before these.
    knows: usize,
}

/// A child's doings.
pub(super) struct Record {
    initial: Disk,
    steps: Vec<Step>,
}

impl Record {
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Steps that are not words.
    pub(super) fn operations(&self) -> usize {
        self.steps.iter().filter(|step| !matches!(step, Step::Said(_))).count()
    }

    /// What the child said in the step before `at`.
    pub(super) fn said(&self, at: usize) -> Option<&str> {
        match self.steps.get(at.checked_sub(1)?)? {
            Step::Said(line) => Some(line),
            _ => None,
        }
    }

    /// The disk after a cut behind the first `at` steps.
    pub(super) fn disk(&self, at: usize, cut: Cut, random: &mut fastrand::Rng) -> Disk {
        self.initial.after(&self.steps[..at], cut, random)
    }

    /// Renames in the store's folder of what was not synced whole before, or not made durable before anything else was
    /// done; and how many there were.
    pub(super) fn hasty_renames(&self) -> (Vec<String>, usize) {
        let (mut disk, mut changed) = (self.initial.clone(), HashMap::new());
        let (mut hasty, mut renames, mut last) = (Vec::new(), 0, None);
        for (at, step) in self.steps.iter().enumerate() {
            match step {
                Step::Said(_) | Step::Failed { .. } => continue,
                Step::Sync { node, since } => {
                    if changed.get(node).is_some_and(|changed| changed < since) {
                        changed.remove(node);
                    }
                    last = last.filter(|folder| folder != node);
                    continue;
                }
                Step::Rename { folder, from, to } if disk.named(0, "store") == Some(*folder) => {
                    renames += 1;
                    let moved = disk.named(*folder, from).unwrap();
                    let unsynced =
                        disk.below(moved).into_iter().any(|it| changed.contains_key(&it));
                    // The old store is moved away as it is.
                    if unsynced && from != "db" {
                        hasty.push(format!("{from} became {to} before it was synced"));
                    }
                    if last.replace(*folder).is_some() {
                        hasty
                            .push(format!("{from} became {to} after a rename that was not synced"));
                    }
                }
                _ if last.take().is_some() => {
                    hasty.push(format!(
                        "{} after a rename that was not synced",
                        self.describe(at + 1)
                    ));
                }
                _ => {}
            }
            disk.take(step);
            changed.insert(step.node().unwrap(), at);
        }
        (hasty, renames)
    }

    /// The step before `at`, for people.
    pub(super) fn describe(&self, at: usize) -> String {
        let mut text = at.checked_sub(1).map_or_else(String::new, |at| match &self.steps[at] {
            Step::Write { node, offset, data } => {
                format!("write of {} bytes to node {node} at {offset}", data.len())
            }
            other => format!("{other:?}"),
        });
        text.truncate(200);
        text
    }
}

struct Reader<'a> {
    root: &'a str,
    disk: Disk,
    files: HashMap<i64, Open>,
    /// The step in which a sync of each failed.
    failed: HashMap<Node, usize>,
    /// A sync succeeded that the kernel would have failed: it tells each who has the file open, and strace but one.
    is_over: bool,
    record: Record,
}

/// Reads the record of a child whose store is below `root`.
pub(super) fn read(text: &str, root: &Path, initial: Disk) -> Record {
    let record = Record { initial: initial.clone(), steps: Vec::new() };
    let root = root.to_str().unwrap();
    let mut reader = Reader {
        root,
        disk: initial,
        files: HashMap::new(),
        failed: HashMap::new(),
        is_over: false,
        record,
    };
    let mut unfinished: HashMap<&str, (String, usize)> = HashMap::new();
    for line in text.lines() {
        if reader.is_over {
            break;
        }
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
            reader.say(begin);
            unfinished.insert(thread, (begin.to_owned(), reader.record.steps.len()));
        } else if let Some(rest) = call.strip_prefix("<... ") {
            let Some((begin, since)) = unfinished.remove(thread) else { continue };
            let rest = rest.split_once("resumed>").map_or("", |it| it.1);
            reader.call(&format!("{begin}{rest}"), since, true);
        } else {
            let since = reader.record.steps.len();
            reader.call(call, since, false);
        }
    }
    assert!(reader.record.steps.len() > 10, "nothing was recorded");
    reader.record
}

impl Reader<'_> {
    fn step(&mut self, step: Step) {
        self.disk.take(&step);
        self.record.steps.push(step);
    }

    /// What the child said counts from when it began to say it.
    fn say(&mut self, call: &str) {
        if let Some(rest) = call.strip_prefix("write(1, ") {
            let text = String::from_utf8_lossy(&quoted(rest)).into_owned();
            for line in text.lines().filter_map(super::super::faulty::said) {
                self.record.steps.push(Step::Said(line.to_owned()));
            }
        }
    }

    /// A call that began when there were `since` steps and has returned.
    fn call(&mut self, call: &str, since: usize, was_said: bool) {
        let Some((name, rest)) = call.split_once('(') else { return };
        // strace aligns results in columns.
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        let Some(arguments) = arguments.trim_end().strip_suffix(')') else { return };
        let result = result.split(' ').next().unwrap_or_default();
        let Ok(result) = result.parse::<i64>() else { return };
        let is_sync = matches!(name, "fsync" | "fdatasync" | "sync_file_range");
        if result < 0 && !(is_sync && call.contains("EIO")) {
            return;
        }
        let words = arguments_of(arguments);
        let word = |at: usize| words.get(at).map_or("", |word| word.trim());
        let first = || word(0).parse::<i64>().unwrap_or(-1);
        match name {
            "write" if first() == 1 && !was_said => self.say(call),
            "write" => self.write(first(), &quoted(word(1)), result, None),
            "pwrite64" => {
                let offset = word(3).parse().unwrap();
                self.write(first(), &quoted(word(1)), result, Some(offset));
            }
            "openat" => self.open(first(), &text_of(word(1)), word(2), result),
            "close" => drop(self.files.remove(&first())),
            "dup" => self.duplicate(first(), result),
            "fcntl" if word(1).starts_with("F_DUPFD") => self.duplicate(first(), result),
            "ftruncate" => {
                if let Some(open) = self.files.get(&first()).copied() {
                    let length = word(1).parse().unwrap();
                    self.step(Step::Truncate { node: open.node, length });
                }
            }
            _ if result < 0 => {
                if let Some(open) = self.files.get_mut(&first()) {
                    let node = open.node;
                    self.failed.insert(node, self.record.steps.len());
                    open.knows = self.record.steps.len() + 1;
                    self.step(Step::Failed { node, since });
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(open) = self.files.get(&first()).copied() {
                    self.is_over = self.failed.get(&open.node).is_some_and(|at| open.knows <= *at);
                    if !self.is_over {
                        self.step(Step::Sync { node: open.node, since });
                    }
                }
            }
            "rename" => self.rename(&text_of(word(0)), &text_of(word(1))),
            "unlink" | "rmdir" => self.unlink(-1, &text_of(word(0))),
            "unlinkat" => self.unlink(first(), &text_of(word(1))),
            "mkdir" => {
                if let Some((folder, name)) = self.place(-1, &text_of(word(0))) {
                    let node = self.add(true);
                    self.step(Step::Link { folder, name, node });
                }
            }
            "fcntl" | "fallocate" | "sync_file_range" | "mmap" => {}
            other => assert!(!call.contains("/store"), "{other} is not understood: {call}"),
        }
    }

    fn add(&mut self, is_folder: bool) -> Node {
        let node = self.record.initial.add(is_folder);
        assert_eq!(node, self.disk.add(is_folder));
        node
    }

    fn write(&mut self, file: i64, data: &[u8], result: i64, at: Option<usize>) {
        let Some(open) = self.files.get_mut(&file) else { return };
        let written = usize::try_from(result).unwrap();
        assert!(data.len() >= written, "the record is cut");
        let offset = at.unwrap_or(open.position);
        if at.is_none() {
            open.position += written;
        }
        let node = open.node;
        self.step(Step::Write { node, offset, data: data[..written].to_vec() });
    }

    fn duplicate(&mut self, file: i64, result: i64) {
        if let Some(open) = self.files.get(&file).copied() {
            self.files.insert(result, open);
        }
    }

    fn open(&mut self, folder: i64, path: &str, flags: &str, result: i64) {
        self.files.remove(&result);
        let Some((folder, name)) = self.place(folder, path) else { return };
        let node = if name.is_empty() { Some(folder) } else { self.disk.named(folder, &name) };
        let node = node.unwrap_or_else(|| {
            assert!(flags.contains("O_CREAT"), "{path} is unknown");
            let node = self.add(false);
            self.step(Step::Link { folder, name, node });
            node
        });
        if flags.contains("O_TRUNC") && self.disk.length(node) > 0 {
            self.step(Step::Truncate { node, length: 0 });
        }
        let position = if flags.contains("O_APPEND") { self.disk.length(node) } else { 0 };
        let knows = self.record.steps.len();
        self.files.insert(result, Open { node, position, knows });
    }

    fn rename(&mut self, from: &str, to: &str) {
        let (Some((folder, from)), Some((other, to))) = (self.place(-1, from), self.place(-1, to))
        else {
            return;
        };
        assert_eq!(folder, other, "nothing is moved from folder to folder");
        self.step(Step::Rename { folder, from, to });
    }

    fn unlink(&mut self, folder: i64, path: &str) {
        if let Some((folder, name)) = self.place(folder, path) {
            self.step(Step::Unlink { folder, name });
        }
    }

    /// The folder and the name that a path means; none outside of the root. An empty name is the folder itself.
    fn place(&self, folder: i64, path: &str) -> Option<(Node, String)> {
        let (mut node, rest) = match path.strip_prefix(self.root) {
            Some(rest) => (0, rest),
            None if path.starts_with('/') => return None,
            None => (self.files.get(&folder)?.node, path),
        };
        let mut names: Vec<&str> =
            rest.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        let last = names.pop().unwrap_or_default();
        for name in names {
            node = self.disk.named(node, name)?;
        }
        Some((node, last.to_owned()))
    }
}

/// The arguments of a call; there are no commas in strings, as all of their bytes are written as numbers.
fn arguments_of(text: &str) -> Vec<&str> {
    text.split(", ").collect()
}

fn text_of(word: &str) -> String {
    String::from_utf8(quoted(word)).unwrap()
}

/// The bytes of a string such as `"\x61\x62"`.
fn quoted(word: &str) -> Vec<u8> {
    let inner = word.split('"').nth(1).unwrap_or_default();
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default();
    let bytes = inner.as_bytes().chunks_exact(4);
    bytes.map(|it| u8::try_from(digit(it[2]) * 16 + digit(it[3])).unwrap()).collect()
}
