#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| berth_fuzz_targets::label_grammar::run(data));
