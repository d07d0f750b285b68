//! NOTICE names the crates that the program contains.

use std::{path::Path, process::Command};

#[test]
fn the_notice_names_what_the_program_contains() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/notice");
    let ended = Command::new(script).arg("--check").env("CARGO", env!("CARGO")).output();
    let ended = ended.expect("python3 is there");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
