//! Work on the device: copies to it and from it, and failures as errors.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Int, Tensor, TensorData};
use sparq::SparqError;
use sparq_models::CausalLm;

use super::request::EngineError;

/// Copies tokens to the device.
pub(super) fn upload(model: &dyn CausalLm, tokens: &[u32], shape: [usize; 2]) -> Tensor<2, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(ids, shape), &model.device())
}

/// Copies logits [rows, 1, vocab] from the device.
pub(super) fn download(
    logits: Tensor<3>,
    model: &dyn CausalLm,
    rows: usize,
) -> Result<Vec<f32>, SparqError> {
    let expected = [rows, 1, model.vocab_size()];
    if logits.dims() != expected {
        return Err(SparqError::Shape {
            what: "logits [rows, 1, vocab]",
            expected: expected.to_vec(),
            found: logits.dims().to_vec(),
        });
    }
    logits.try_into_vec_as::<f32>().map_err(unreadable)
}

/// The error of logits that cannot be copied.
pub(super) fn unreadable(error: impl Display) -> SparqError {
    SparqError::Value {
        what: "logits",
        expected: "values that can be read from the device".into(),
        found: error.to_string(),
    }
}

/// Runs work on the device. A panic in it is an error of the request, not the end of the thread.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, SparqError>) -> Result<T, EngineError> {
    caught(|| work().map_err(EngineError::model))
}

/// As [`guarded`], for work with other errors.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(EngineError::Failed {
            reason: format!("the model failed: {}", message_of(&*panic)),
        })
    })
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
