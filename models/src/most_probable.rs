//! The most probable tokens of logits, found on the device: [`MostProbable`].

use burn::backend::ExecutionError;
use burn::tensor::{Int, Tensor, TensorData};
use sparq::ops::{self, StepTensors};

/// The most probable token of each position, on the device.
///
/// A decode step can take it before the host knows it. Of equal logits the lowest id is taken, as
/// by [`Sampler`](crate::text::Sampler).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use sparq_models::MostProbable;
///
/// let logits = [[[0.5, 2.0, 2.0], [1.0, f32::NAN, 0.0]]];
/// let logits = Tensor::<3>::from_floats(logits, &Device::default());
/// let found = MostProbable::of(&logits);
/// assert_eq!(found.ids().dims(), [1, 2]);
/// assert_eq!(found.read()?, [Some(1), None]);
/// # Ok::<(), burn::backend::ExecutionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MostProbable {
    /// Ids and whether they are valid, [2, B T].
    found: Tensor<2, Int>,
    /// B and T.
    dims: [usize; 2],
}

impl MostProbable {
    /// Finds the most probable tokens of logits [B, T, vocab] in f32.
    pub fn of(logits: &Tensor<3>) -> Self {
        let [batch, len, vocab] = logits.dims();
        Self {
            found: ops::argmax(logits.clone().reshape([batch * len, vocab])),
            dims: [batch, len],
        }
    }

    /// Returns the ids, [B, T].
    pub fn ids(&self) -> Tensor<2, Int> {
        self.found.clone().slice_dim(0, 0..1).reshape(self.dims)
    }

    /// Copies the ids of all positions from the device. `None` where logits are NaN or positive
    /// infinity, or all of them negative infinity.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(self) -> Result<Vec<Option<u32>>, ExecutionError> {
        self.read_while(|| ()).0
    }

    /// [`MostProbable::read`] while `work` runs; see [`read_while`](ops::read_while). Returns the
    /// result of both.
    pub fn read_while<T>(
        self,
        work: impl FnOnce() -> T,
    ) -> (Result<Vec<Option<u32>>, ExecutionError>, T) {
        let (data, result) = ops::read_while(self.found, work);
        (data.map(|data| tokens(&data)), result)
    }
}

/// So that a [`CapturedStep`](sparq::CapturedStep) can return it.
impl StepTensors for MostProbable {
    fn duplicate(&self) -> Self {
        Self {
            found: self.found.duplicate(),
            dims: self.dims,
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.dims == other.dims && self.found.is_like(&other.found)
    }

    fn overwrite(&mut self, from: Self) -> bool {
        self.found.overwrite(from.found)
    }
}

/// Splits ids and whether they are valid, [2, n].
fn tokens(data: &TensorData) -> Vec<Option<u32>> {
    let all: Vec<i64> = data.iter::<i64>().collect();
    let (ids, valid) = all.split_at(all.len() / 2);
    let pairs = ids.iter().zip(valid);
    pairs
        .map(|(&id, &valid)| (valid == 1).then_some(id as u32))
        .collect()
}
