#![no_main]

use libfuzzer_sys::fuzz_target;
use sparq_fuzz::{Limited, run};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

// libFuzzer's hook ends the program where a panic begins. Those inside the crate `tokenizers` are caught, and are errors.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |data: &[u8]| {
    run("gguf", data);
});
