//! Fuzz targets for the untrusted files of a checkpoint and for the requests of a server: one
//! function for each kind.
//!
//! Each function returns whether the bytes were accepted. They may also be refused, with an error
//! that names the file. The functions assert this, that no file outside of the folder is opened,
//! and that a loaded model runs. The fuzzer finds panics, hangs, and memory beyond the limit of
//! [`Limited`]. The tests of the workspace run the same functions over the seeds and over all
//! former findings.

mod chat;
mod config;
mod converted;
mod gguf;
mod index;
mod memory;
mod request;
mod safetensors;
mod tensors;
mod tokenizer;
mod tokenizer_config;
mod torch;

pub use memory::Limited;

/// Reads bytes as one kind of file or request. Returns whether they were accepted.
pub type Target = fn(&[u8]) -> bool;

/// Every target by its name.
pub const TARGETS: [(&str, Target); 10] = [
    ("chat", chat::run),
    ("config", config::run),
    ("converted", converted::run),
    ("gguf", gguf::run),
    ("index", index::run),
    ("request", request::run),
    ("safetensors", safetensors::run),
    ("tokenizer", tokenizer::run),
    ("tokenizer_config", tokenizer_config::run),
    ("torch", torch::run),
];

/// Runs the target `name`.
///
/// # Panics
/// If there is no such target, or the target finds a fault.
pub fn run(name: &str, data: &[u8]) -> bool {
    let (_, target) = TARGETS
        .iter()
        .find(|(own, _)| *own == name)
        .expect("a target of this name");
    target(data)
}

/// Returns the value, or `None` for an error.
///
/// # Panics
/// If the message of the error does not name `origin`.
fn accepted<T, E: std::error::Error>(result: Result<T, E>, origin: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains(origin), "{origin} is not named: {message}");
            None
        }
    }
}
