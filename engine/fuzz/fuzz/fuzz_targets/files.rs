//! libFuzzer's entry to the target `files`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| rohrpost_engine_fuzz::run("files", data));
