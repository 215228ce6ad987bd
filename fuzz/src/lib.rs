//! What strangers may put into a checkpoint: a function for each kind of file, which has to come back whatever bytes it is given.
//!
//! Each returns whether the bytes were taken for what they should be. Refusing them is as good, if the error says where they came from: that is asserted, and
//! with it that nothing leads out of the folder and that a model which was loaded can be run. Panics, a hang and memory beyond [`Limited`] are what the fuzzer
//! looks for. The tests of the workspace run the same functions over the seeds and over every input that was once a finding.

mod chat;
mod config;
mod converted;
mod gguf;
mod index;
mod memory;
mod safetensors;
mod tensors;
mod tokenizer;
mod torch;

pub use memory::Limited;

/// Tries bytes as one kind of file; whether they were taken for one.
pub type Target = fn(&[u8]) -> bool;

/// Every target by its name.
pub const TARGETS: [(&str, Target); 8] = [
    ("chat", chat::run),
    ("config", config::run),
    ("converted", converted::run),
    ("gguf", gguf::run),
    ("index", index::run),
    ("safetensors", safetensors::run),
    ("tokenizer", tokenizer::run),
    ("torch", torch::run),
];

/// Runs the target `name`.
///
/// # Panics
/// If there is no such target, and if the target finds something.
pub fn run(name: &str, data: &[u8]) -> bool {
    let (_, target) = TARGETS
        .iter()
        .find(|(own, _)| *own == name)
        .expect("the name of a target");
    target(data)
}

/// The value, or `None` for an error, which has to name `origin`.
///
/// # Panics
/// If it does not.
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
