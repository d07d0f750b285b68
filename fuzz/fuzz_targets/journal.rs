#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fusebox_state::store::fuzzing::journal(bytes));
