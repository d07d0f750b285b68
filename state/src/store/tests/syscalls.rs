//! Every system call that the store makes fails, one by one, and nothing that was acknowledged is lost.
//!
//! strace makes them fail in a child (`faulty.rs`): the N-th call of one kind, for N = 1, 2, … until a run meets no
//! fault, once, ten times in a row, or from then on; in service with a warm and a cold cache, at the start, in replay,
//! in a rebuild, in a salvage, in an upgrade and in a first start. **strace counts the calls of each thread for
//! itself**, so that the N-th `pwrite64` fails in every thread that gets so far. A fault that passes must heal without
//! a restart; under one that stays, as ten in a row do if each open fails within its first ten calls, the store may
//! refuse everything, and it must open whole when the fault is gone.
//!
//! A sample of all that runs by default, everything with `FUSEBOX_TEST_FAULTS=all`.

use std::{collections::BTreeSet, os::unix::process::ExitStatusExt, sync::Arc, thread};

use parking_lot::Mutex;

use super::{
    faulty::{Template, command, everything, judge, model::Model, said, scratch},
    *,
};

/// Kinds of faults that are tried at once.
const AT_ONCE: usize = 4;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Once(&'static str),
    TenTimes(&'static str),
    Sticky(&'static str),
    /// It says that it has written more than it was given: sled's own thread panics in the middle of a write.
    Overrun,
    Kill,
}

impl Fault {
    fn expression(self, syscall: &str, nth: usize) -> String {
        match self {
            Self::Once(error) => format!("inject={syscall}:error={error}:when={nth}"),
            Self::TenTimes(error) => {
                format!("inject={syscall}:error={error}:when={nth}..{}", nth + 9)
            }
            Self::Sticky(error) => format!("inject={syscall}:error={error}:when={nth}+"),
            Self::Overrun => format!("inject={syscall}:retval=9000000:when={nth}"),
            Self::Kill => format!("inject={syscall}:signal=KILL:when={nth}"),
        }
    }
}

/// What the child does, and with which store.
struct Scene {
    name: &'static str,
    part: &'static str,
    template: Arc<Template>,
    /// Paths of the store that the child touches: only calls on them fail.
    paths: BTreeSet<String>,
    dir: tempfile::TempDir,
}

const CALLS: [&str; 14] = [
    "pwrite64",
    "pread64",
    "fdatasync",
    "fsync",
    "sync_file_range",
    "ftruncate",
    "openat",
    "rename",
    "statfs",
    "write",
    "read",
    "unlink",
    "mkdir",
    "fallocate",
];

impl Scene {
    fn new(name: &'static str, part: &'static str, template: Template) -> Self {
        let template = Arc::new(template);
        let mut scene = Self { name, part, template, paths: BTreeSet::new(), dir: scratch() };
        scene.look_at_paths();
        scene
    }

    /// The same in another folder.
    fn twin(&self) -> Self {
        let dir = scratch();
        let (from, to) = (self.dir.path().to_str().unwrap(), dir.path().to_str().unwrap());
        let paths = self.paths.iter().map(|path| path.replacen(from, to, 1)).collect();
        Self { name: self.name, part: self.part, template: Arc::clone(&self.template), paths, dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("it")
    }

    /// A run without faults, which tells what paths there are.
    fn look_at_paths(&mut self) {
        let root = self.root();
        drop(self.template.copy_to(&root));
        let log = self.dir.path().join("trace");
        let wrapper = self.strace(&log, &["-e", "trace=openat,rename,mkdir,unlink,statfs"]);
        let output = command(&wrapper, self.part, &root).output().unwrap();
        assert!(output.status.code().is_some(), "{output:?}");
        let text = fs::read_to_string(&log).unwrap();
        let root = root.to_str().unwrap().to_owned();
        let quoted = text.split('"').filter(|part| part.starts_with(&root));
        self.paths = quoted.map(str::to_owned).collect();
        for folder in
            ["store", "store/db", "store/db.partial", "store/db.ready", "store/db.discard"]
        {
            for file in ["", "/db", "/conf", "/blobs"] {
                self.paths.insert(format!("{root}/{folder}{file}"));
            }
        }
    }

    fn strace(&self, log: &Path, more: &[&str]) -> Vec<String> {
        let log = log.to_str().unwrap();
        let mut words: Vec<String> =
            ["strace", "-f", "--seccomp-bpf", "-qqq", "-o", log].map(str::to_owned).into();
        words.extend(more.iter().map(|word| (*word).to_owned()));
        if words.iter().any(|word| word.contains("signal=")) {
            // With the filter, strace 6.1 sends no signal.
            words.retain(|word| word != "--seccomp-bpf");
        }
        words
    }

    /// One run. `None`: it met no fault.
    fn run(&self, fault: Fault, syscall: &str, nth: usize) -> Option<Result<(), String>> {
        let root = self.root();
        let mut model = self.template.copy_to(&root);
        let log = self.dir.path().join("trace");
        let (traced, injected) = (format!("trace={syscall}"), fault.expression(syscall, nth));
        let mut wrapper = self.strace(&log, &["-e", &traced, "-e", &injected]);
        for path in &self.paths {
            wrapper.extend(["-P".to_owned(), path.clone()]);
        }
        let mut child = command(&wrapper, self.part, &root);
        if matches!(fault, Fault::Sticky(_)) {
            child.env(super::faulty::child::GIVES_UP, "1300");
        }
        let output = child.output().unwrap();
        let trace = fs::read_to_string(&log).unwrap();
        let was_killed = output.status.signal().is_some();
        if !was_killed && (fault == Fault::Kill || !trace.contains("(INJECTED)")) {
            return None;
        }
        Some(self.examine(fault, &root, &mut model, &output))
    }

    fn examine(
        &self,
        fault: Fault,
        root: &Path,
        model: &mut Model,
        output: &std::process::Output,
    ) -> Result<(), String> {
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().filter_map(said).collect();
        let tail = || lines.iter().rev().take(12).rev().copied().collect::<Vec<_>>().join("\n    ");
        for line in &lines {
            model.hear(line).map_err(|why| format!("{why}\n    {}", tail()))?;
        }
        // That one is of a thread of sled.
        if errors.contains("panicked at") && fault != Fault::Overrun {
            return Err(format!("a panic shows: {errors}\n    {}", tail()));
        }
        let ended = lines.last() == Some(&"end");
        // Each open begins with threads of its own, whose calls are counted from the start: ten in a row may last for
        // ever.
        if matches!(fault, Fault::Once(_) | Fault::Overrun) && !ended {
            return Err(format!("it did not heal: {errors}\n    {}", tail()));
        }
        let what = format!("{} after {}", self.name, tail());
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            judge(root, model, &what);
        }));
        judged.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    /// Runs with the N-th call failing, until none does; not for every N.
    fn run_all(&self, fault: Fault, syscall: &str, failures: &mut Vec<String>) -> usize {
        let mut nth = 1;
        let mut runs = 0;
        while let Some(result) = self.run(fault, syscall, nth) {
            runs += 1;
            if let Err(why) = result {
                let entry = format!("{}: {fault:?} {syscall} {nth}: {why}", self.name);
                println!("{entry}");
                failures.push(entry);
            }
            // Each of the first 32, then an eighth further each time: larger scenes make thousands of calls.
            nth += match nth {
                _ if !everything() => nth * 4,
                ..32 => 1,
                nth => nth / 8,
            };
        }
        runs
    }
}

/// Runs all faults of a scene, several at once as each waits for most of its time; the test fails if one of them does.
#[track_caller]
fn suffer(scene: &Scene, faults: &[Fault], syscalls: &[&str]) {
    let kinds = faults.iter().flat_map(|fault| syscalls.iter().map(move |call| (*fault, *call)));
    let kinds = Mutex::new(kinds);
    let next = || kinds.lock().next();
    let work = || {
        let scene = scene.twin();
        let mut failures = Vec::new();
        while let Some((fault, syscall)) = next() {
            let runs = scene.run_all(fault, syscall, &mut failures);
            println!("{} {fault:?}: {syscall} {runs}", scene.name);
        }
        failures
    };
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The faults of a scene: some of them by default.
fn faults() -> Vec<Fault> {
    let mut faults = vec![Fault::Once("EIO")];
    if everything() {
        faults.extend([Fault::TenTimes("EIO"), Fault::Sticky("EIO"), Fault::Once("ENOSPC")]);
        faults.extend([Fault::TenTimes("ENOSPC"), Fault::Sticky("ENOSPC"), Fault::Kill]);
    }
    faults
}

#[test]
fn in_service_with_a_warm_cache() {
    let scene = Scene::new("warm", "serve", Template::empty());
    suffer(&scene, &faults(), &CALLS);
}

#[test]
fn in_service_with_a_cold_cache() {
    let scene = Scene::new("cold", "serve", Template::filled("fill"));
    suffer(&scene, &faults(), &CALLS);
}

#[test]
fn at_the_start() {
    let scene = Scene::new("start", "open", Template::filled("fill"));
    suffer(&scene, &faults(), &CALLS);
}

#[test]
fn in_replay() {
    let scene = Scene::new("replay", "replay", Template::filled("fill"));
    suffer(&scene, &faults(), &CALLS);
}

#[test]
fn in_a_replay_of_more_than_the_cache_holds() {
    let scene = Scene::new("large", "replay", Template::filled("fill-large"));
    let calls: &[&str] = if everything() { &["pwrite64", "pread64"] } else { &["pread64"] };
    // Its runs are the longest.
    let faults = [Fault::Once("EIO"), Fault::Sticky("EIO"), Fault::Kill];
    suffer(&scene, if everything() { &faults } else { &faults[..1] }, calls);
}

#[test]
fn in_a_rebuild() {
    let scene = Scene::new("rebuild", "rebuild", Template::filled("fill"));
    suffer(&scene, &faults(), &CALLS);
}

/// Whoever flushes or closes the copy would wait for ever: the compaction is given up, and the store serves on.
#[test]
fn in_a_compaction_whose_writing_never_ends() {
    let mut scene = Scene::new("stuck", "compact", Template::filled("fill"));
    let partial = scene.root().join("store/db.partial/db");
    scene.paths = [partial.to_str().unwrap().to_owned()].into();
    suffer(&scene, &[Fault::Overrun], &["pwrite64"]);
}

#[test]
fn in_a_salvage() {
    let scene = Scene::new("salvage", "open", Template::flipped("fill"));
    suffer(&scene, &faults(), &CALLS);
}

#[test]
fn in_an_upgrade() {
    let scene = Scene::new("upgrade", "open", Template::of_the_first_format("fill"));
    suffer(&scene, &faults(), &CALLS);
}

#[test]
fn in_a_first_start() {
    let scene = Scene::new("first", "open", Template::empty());
    suffer(&scene, &faults(), &CALLS);
}

/// Killed at the N-th call, in a sample; everything is part of the above.
#[test]
fn killed_at_some_call() {
    for (name, part, template) in [
        ("serve", "serve", Template::filled("fill")),
        ("rebuild", "rebuild", Template::filled("fill")),
        ("salvage", "open", Template::flipped("fill")),
        ("first", "open", Template::empty()),
    ] {
        let scene = Scene::new(name, part, template);
        suffer(&scene, &[Fault::Kill], &["pwrite64", "rename", "fsync", "openat"]);
    }
}
