#![no_main]

use libfuzzer_sys::fuzz_target;
use sparq_fuzz::{Limited, run};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

// libFuzzer's panic hook would end the program at once. Panics inside the crate `tokenizers` are
// caught and become errors.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |data: &[u8]| {
    run("tokenizer_config", data);
});
