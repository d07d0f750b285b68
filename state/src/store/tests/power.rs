//! The power fails at any moment, and nothing that was acknowledged is lost.
//!
//! strace records every file operation of a child (`faulty.rs`), with all data, and what the child was promised in
//! between. From that record the disk is made as a power cut may leave it (`power/disk.rs`), at every operation, and
//! the store is opened on it:
//!
//! - a write is there for certain only once a sync of its file has begun after it and returned. `sync_file_range`
//!   counts for nothing;
//! - one that is not may be missing, whole, or torn: each block of 512 bytes or 4 KiB is as any of the writes since the
//!   last sync left it, whatever became of its neighbours, and the file is as long as any of them made it;
//! - what a sync failed to keep is never there, unless it is written again: the kernel takes it for written;
//! - what was created, renamed or removed in a folder since its last sync may be undone, the newest first.
//!
//! Without a power cut, but after a `kill -9`, everything is there that was written: one more way to make the disk.
//!
//! A sample runs by default, everything with `FUSEBOX_TEST_FAULTS=all`; `FUSEBOX_TEST_SEED` sets the seed.

mod disk;
mod trace;

use disk::{Cut, Disk};

use super::{
    faulty::{Template, command, everything, judge, model::Model, run, scratch},
    *,
};

const CUTS: [Cut; 6] =
    [Cut::Killed, Cut::Nothing, Cut::Whole, Cut::Torn(512), Cut::Torn(4096), Cut::Files];

fn seed() -> u64 {
    std::env::var("FUSEBOX_TEST_SEED").map_or(1, |seed| seed.parse().unwrap())
}

/// Records a child, cuts the power, and holds that the promises are kept.
#[track_caller]
fn cut_everywhere(name: &str, part: &str, template: &Template) {
    cut_with(name, part, template, &[]);
}

/// The same, with more arguments for strace.
#[track_caller]
fn cut_with(name: &str, part: &str, template: &Template, more: &[&str]) {
    let dir = scratch();
    let (record, start) = recorded(dir.path(), part, template, more);
    let mut random = fastrand::Rng::with_seed(seed());
    let total = record.operations();
    let share = if everything() { 1.0 } else { (25.0 / total as f64).min(1.0) };
    let (mut cuts, mut failures) = (0, Vec::new());
    let mut model = start;
    for at in 0..=record.len() {
        if let Some(line) = record.said(at) {
            model.hear(line).unwrap();
            continue;
        }
        for cut in CUTS {
            if random.f64() >= share {
                continue;
            }
            cuts += 1;
            let target = dir.path().join("cut");
            space::remove_folder(&target).unwrap();
            record.disk(at, cut, &mut random).write(&target);
            if let Err(why) = hold(name, &target, &model, random.u8(..4) == 0) {
                println!("{name}, {cut:?} after {at} of {}: {why}", record.len());
                failures.push(format!("{cut:?} after {at} ({}): {why}", record.describe(at)));
            }
        }
    }
    println!("{name}: {cuts} cuts of {total} operations, {} failed", failures.len());
    let shown = failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {cuts} cuts failed:\n{shown}", failures.len());
}

/// What a child did to a copy of a template below `dir`, and what it began with.
#[track_caller]
fn recorded(dir: &Path, part: &str, template: &Template, more: &[&str]) -> (trace::Record, Model) {
    let root = dir.join("it");
    let start = template.copy_to(&root);
    let initial = Disk::load(&root);
    let log = dir.join("trace");
    let mut wrapper: Vec<String> =
        ["strace", "-f", "--seccomp-bpf", "-qqq", "-xx", "-s", "8000000", "-e", trace::CALLS, "-o"]
            .map(str::to_owned)
            .into();
    wrapper.push(log.to_str().unwrap().to_owned());
    wrapper.extend(more.iter().map(|word| (*word).to_owned()));
    let output = command(&wrapper, part, &root).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{output:?}");
    let record = trace::read(&fs::read_to_string(&log).unwrap(), &root, initial);
    fs::remove_file(&log).unwrap();
    (record, start)
}

/// A name never says more than the disk holds: what takes a name is synced before, all of it, and the folder after,
/// before anything else is done. A power cut so falls between two renames, not among them, also if a file system
/// does not keep their order; and it leaves no half of a file that sled would stumble over.
#[test]
fn what_is_renamed_is_synced_before_and_its_folder_after() {
    for (part, template, least) in [
        ("rebuild", Template::filled("fill"), 8),
        ("open", Template::flipped("fill"), 4),
        ("open", Template::of_the_first_format("fill"), 4),
        ("open", Template::empty(), 1),
    ] {
        let dir = scratch();
        let (record, _) = recorded(dir.path(), part, &template, &[]);
        let (hasty, renames) = record.hasty_renames();
        assert_eq!(hasty, [""; 0], "{part}");
        assert!(renames >= least, "{part}: {renames}");
    }
}

fn hold(name: &str, dir: &Path, model: &Model, twice: bool) -> Result<(), String> {
    let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        judge(dir, model, name);
        if twice {
            let mut again = model.clone();
            again.was_told();
            judge(dir, &again, "and again");
        }
    }));
    judged.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn in_service() {
    cut_everywhere("service", "serve", &Template::empty());
}

#[test]
fn in_service_with_segments_that_are_used_again() {
    cut_everywhere("long service", "serve-long", &Template::filled("fill"));
}

#[test]
fn in_a_rebuild_and_a_compaction() {
    cut_everywhere("rebuild", "rebuild", &Template::filled("fill"));
}

/// A sync fails, and what it was to keep is never on the disk: the kernel takes it for written.
#[test]
fn after_a_failed_sync() {
    let template = Template::filled("fill");
    // Each is a run of its own with all its cuts. An open syncs everything, files and folders.
    let (last, step) = if everything() { (24, 3) } else { (11, 5) };
    for nth in (1..=last).step_by(step) {
        for (part, call) in
            [("serve", "fdatasync"), ("serve", "sync_file_range"), ("open", "fsync")]
        {
            let fault = format!("inject={call}:error=EIO:when={nth}");
            cut_with(&format!("failed {call} {nth}"), part, &template, &["-e", &fault]);
        }
    }
}

#[test]
fn in_a_salvage() {
    cut_everywhere("salvage", "open", &Template::flipped("fill"));
}

#[test]
fn in_an_upgrade() {
    cut_everywhere("upgrade", "open", &Template::of_the_first_format("fill"));
}

#[test]
fn in_a_first_start() {
    cut_everywhere("first start", "open", &Template::empty());
}

/// Two cuts: what the second open of a salvage, after a power cut in the first, may leave.
#[test]
fn in_a_salvage_that_follows_a_cut() {
    let template = Template::flipped("fill");
    let dir = scratch();
    drop(template.copy_to(dir.path()));
    // A first open got as far as the finished copy.
    let store = dir.path().join("store");
    let marked = mark::read(&store).unwrap();
    let Ok(open::Look::Planned(raw, plan)) = open::look(&store.join("db"), marked, &mut |_, _| {})
    else {
        panic!("it can be salvaged")
    };
    let kept = store.join("db.damaged-7");
    let (calls, kept_path) = (plan.lost.calls.iter().copied().collect(), Some(kept.clone()));
    let (notes, dead) = (Vec::new(), Vec::new());
    let told = Finding::Lost { calls, notes, dead, facts: false, kept: kept_path };
    untold::note(&store, &[told], Some(&kept)).unwrap();
    rebuild::from_plan(&settings(dir.path()), &raw, &plan).unwrap();
    let template = Template { dir, model: template.model };
    cut_everywhere("second salvage", "open", &template);
}

#[test]
fn the_children_run_without_a_fault() {
    for part in ["serve", "serve-long", "rebuild", "replay"] {
        let template = Template::filled("fill");
        let dir = scratch();
        let mut model = template.copy_to(dir.path());
        let (lines, errors) = run(&[], part, dir.path());
        for line in &lines {
            model.hear(line).unwrap();
        }
        assert_eq!(
            (lines.last().map(String::as_str), errors.as_str()),
            (Some("end"), ""),
            "{part}"
        );
        assert_eq!(judge(dir.path(), &model, part), []);
    }
}
