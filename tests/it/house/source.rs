//! The files of the three crates, as they are on disk or as a test invents them.

use std::{collections::BTreeMap, fs, path::Path};

/// The crates, by the name that paths call them, and the file that each begins with.
pub(crate) const CRATES: [(&str, &str); 4] = [
    ("fusebox", "src/lib.rs"),
    // A crate of its own, which nothing can name.
    ("", "src/main.rs"),
    ("fusebox_actors", "actors/src/lib.rs"),
    ("fusebox_state", "state/src/lib.rs"),
];

const FOLDERS: [&str; 3] = ["src", "actors/src", "state/src"];
/// The folders of code that is never shipped, and of the tests of the other crates.
const OTHER_FOLDERS: [&str; 5] =
    ["tests", "benches", "actors/tests", "state/tests", "fuzz/fuzz_targets"];

/// Path, relative to the root of the repository, to text.
pub(crate) type Sources = BTreeMap<String, String>;

/// Every `.rs` file below the source folders that is not a test's.
pub(crate) fn read(root: &Path) -> Sources {
    let mut sources = Sources::new();
    for folder in FOLDERS {
        add(root, folder, &|path| !is_of_tests(path), &mut sources);
    }
    assert!(!sources.is_empty(), "no sources below {}", root.display());
    sources
}

/// Every `.rs` file, tests and benchmarks included.
pub(crate) fn read_all(root: &Path) -> Sources {
    let mut sources = Sources::new();
    for folder in FOLDERS.iter().chain(&OTHER_FOLDERS) {
        add(root, folder, &|_| true, &mut sources);
    }
    sources
}

fn add(root: &Path, folder: &str, is_wanted: &dyn Fn(&str) -> bool, sources: &mut Sources) {
    let entries = fs::read_dir(root.join(folder)).unwrap_or_else(|why| panic!("{folder}: {why}"));
    for entry in entries {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("a name in UTF-8"));
        if !is_wanted(&path) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            add(root, &path, is_wanted, sources);
        } else if Path::new(&path).extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(entry.path()).unwrap();
            sources.insert(path, text);
        }
    }
}

/// Whether a file or folder holds tests and their helpers.
pub(crate) fn is_of_tests(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "testing" | "testing.rs"))
}
