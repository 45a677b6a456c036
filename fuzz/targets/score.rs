#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| deepconf_fuzz::targets::run("score", data));
