//! Tests of models and checkpoints, in one binary.
//!
//! | module | subject |
//! |---|---|
//! | `parity` | logits and greedy tokens of every family, compared with transformers |
//! | `conversion` | `sparq convert` of every family, to the mapped format and back |
//! | `torch` | `pytorch_model.bin`: PyTorch's files, malformed files, logits |
//! | `calibration_window` | the kept attention probability with a sliding window |
//! | `docs` | code and tables in the documentation, compared with the sources |
//!
//! Separate binaries, each a process of its own: `gguf` and `bits_per_character` download a model
//! on request, `captured` captures on devices that no other test may use meanwhile, and `hostile`
//! replaces the allocator by a limited one.

mod calibration_window;
mod conversion;
mod docs;
mod parity;
mod torch;
