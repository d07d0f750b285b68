#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fusebox::kinds::clickhouse::fuzzing::statements(bytes));
