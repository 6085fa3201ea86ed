#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kage_agent::decoders::event_stream(bytes));
