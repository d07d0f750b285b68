#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fusebox::kinds::firestore::fuzzing::messages(bytes));
