//! Copies of tokens to the device and of logits from it.

use burn::tensor::{Int, Tensor, TensorData};

use super::generation::GenerateError;
use crate::CausalLm;

/// Copies equally many tokens of each sequence to the device, as [B, T].
pub(super) fn upload(model: &dyn CausalLm, rows: &[&[u32]]) -> Tensor<2, Int> {
    let len = rows.first().map_or(0, |row| row.len());
    let ids = rows.iter().flat_map(|row| row.iter());
    let ids: Vec<i64> = ids.map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(ids, [rows.len(), len]), &model.device())
}

/// Copies logits [B, T, vocab] from the device.
///
/// # Errors
/// If the logits have another shape, or if the device fails.
pub(super) fn download(
    logits: Tensor<3>,
    model: &dyn CausalLm,
    [batch, len]: [usize; 2],
) -> Result<Vec<f32>, GenerateError> {
    check(&logits, model, [batch, len])?;
    logits.try_into_vec_as::<f32>().map_err(failed)
}

/// Checks the shape of logits [B, T, vocab].
pub(super) fn check(
    logits: &Tensor<3>,
    model: &dyn CausalLm,
    [batch, len]: [usize; 2],
) -> Result<(), GenerateError> {
    let (expected, found) = ([batch, len, model.vocab_size()], logits.dims());
    match found == expected {
        true => Ok(()),
        false => Err(GenerateError::LogitsShape { expected, found }),
    }
}

/// The error of a device that fails to copy.
pub(super) fn failed(error: impl std::fmt::Display) -> GenerateError {
    GenerateError::Device {
        reason: error.to_string(),
    }
}
