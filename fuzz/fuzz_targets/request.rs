#![no_main]

use libfuzzer_sys::fuzz_target;
use sparq_fuzz::{Limited, run};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    run("request", data);
});
