//! What a start costs, measured by hand:
//!
//! ```text
//! cargo test --release -p fusebox-state what_a_start_costs -- --ignored --nocapture
//! ```
//!
//! `FUSEBOX_TEST_COST_DIR` names a folder on the disk that is to be measured; the stores are filled in memory. A cold
//! start begins with the log out of the kernel's cache.

use std::time::Instant;

use rustix::{
    fs::{Advice, fadvise},
    time::{ClockId, clock_gettime},
};

use super::{faulty, *};

/// Calls and bytes of the body of each.
const STORES: [(u64, usize); 2] = [(100_000, 1 << 10), (256, 4 << 20)];

fn fill(dir: &Path, calls: u64, bytes: usize) {
    let opened = open(dir);
    for seq in 1..=calls {
        let content = body(seq, bytes);
        opened.store.append(call(seq, &content), Box::new(|result| result.unwrap()));
        if seq % 64 == 0 {
            wait(|done| opened.store.put_fact("filled", vec![], done)).unwrap();
        }
    }
}

/// Bytes that this process has read and written so far, by system calls that say how many.
fn moved() -> [u64; 2] {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    [number("rchar:"), number("wchar:")]
}

/// Time of a processor that this process took.
fn worked() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn measured<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let ([read, written], since, began) = (moved(), Instant::now(), worked());
    let result = step();
    let (took, worked, [read_now, written_now]) = (since.elapsed(), worked() - began, moved());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (read, written) = (mib(read_now - read), mib(written_now - written));
    println!(
        "  {what:<14} {:>6.2} s, {worked:>6.2} s of a processor, read {read:>5.0} MiB, wrote {written:>5.0} MiB",
        took.as_secs_f64()
    );
    result
}

fn forget(log: &Path) {
    let file = fs::File::open(log).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
#[ignore = "it fills some gigabytes, and measures"]
fn what_a_start_costs() {
    for (calls, bytes) in STORES {
        let filled = faulty::scratch();
        fill(filled.path(), calls, bytes);
        let dir = match std::env::var_os("FUSEBOX_TEST_COST_DIR") {
            Some(dir) => tempfile::tempdir_in(dir).unwrap(),
            None => tempfile::tempdir().unwrap(),
        };
        faulty::copy(filled.path(), dir.path());
        drop(filled);
        let (store, log) = (dir.path().join("store"), dir.path().join("store/db/db"));
        let size = fs::metadata(&log).unwrap().len() >> 20;
        println!("{calls} calls of {bytes} bytes, a log of {size} MiB");
        for cold in [true, false] {
            if cold {
                forget(&log);
            }
            let opened =
                measured(if cold { "a cold start" } else { "a warm start" }, || open(dir.path()));
            assert_eq!(opened.calls.len() as u64, calls);
        }
        let db = store.join("db");
        let marked = mark::read(&store).unwrap();
        let raw = measured("raw log read", || raw::Raw::read(&db, &mut |_, _| {}).unwrap());
        let plan = measured("plan", || plan::choose(&raw, marked.head()).unwrap());
        assert!(plan.is_exact());
        measured("copy", || shield::copy_log(&settings(dir.path()), &db).unwrap());
        let sled = measured("sled opens", || guard::open_sled(&db).unwrap().unwrap());
        measured("scan", || {
            assert!(scan::scan(&sled, Some(&plan), true).unwrap().differs.is_none())
        });
        measured("sled closes", || assert!(guard::close(sled)));
        measured("rebuild", || rebuild::from_plan(&settings(dir.path()), &raw, &plan).unwrap());
    }
}
