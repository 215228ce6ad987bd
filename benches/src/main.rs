//! The program `sparq-bench`: everything is in the library, so that `cargo bench` runs the same.

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    #[cfg(feature = "kernel-cache")]
    unsafe {
        sparq_device::kernel_cache::enable();
    }
    sparq_benches::cli::main(None)
}
