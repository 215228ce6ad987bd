//! Tests of the decoder, in one binary.
//!
//! | module | subject |
//! |---|---|
//! | `families` | models of every family: random weights, old files, windows, precision, training |
//! | `methods` | several methods after one prefill, and dense first layers |
//! | `prompt` | a long prompt in parts: the same text, in memory that does not grow |
//! | `sharing` | layers that share positions: plans, caches, steps, drafts |
//! | `calibration` | the attention probability that SparQ keeps, compared with float64 |

mod calibration;
mod families;
mod methods;
mod prompt;
mod sharing;

use burn::tensor::{Device, FloatDType};
use sparq_models::{Decoder, DecoderConfig, embedded};

/// Loads the embedded model in f32.
fn embedded_model(device: &Device) -> Decoder {
    let checkpoint = embedded::checkpoint().unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    Decoder::load(&checkpoint, &config, FloatDType::F32, device).unwrap()
}
