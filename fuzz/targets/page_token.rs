#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kage_coordinator::decoders::page_token(bytes));
