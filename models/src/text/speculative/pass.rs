//! The logits of a pass over a batch: [`Pass`].

use burn::tensor::Tensor;

use super::{Candidate, GenerateError, SpeculativeRow};
use crate::text::sampler::Sampler;
use crate::text::transfer::{check, download, failed};
use crate::{CausalLm, MostProbable};

/// The logits of a pass over a few tokens of every sequence, on the device until the host needs
/// them.
pub(super) struct Pass<'m> {
    model: &'m dyn CausalLm,
    /// [B, T, vocab].
    logits: Tensor<3>,
    /// B and T.
    dims: [usize; 2],
    /// The most probable token of each position, if no sequence needs more.
    most_probable: Option<Vec<Option<u32>>>,
    downloaded: Option<Vec<f32>>,
}

impl<'m> Pass<'m> {
    /// Waits for the logits [B, T, vocab], or for the most probable tokens if all rows take these.
    pub fn new(
        model: &'m dyn CausalLm,
        logits: Tensor<3>,
        rows: &[SpeculativeRow<'_>],
        len: usize,
    ) -> Result<Self, GenerateError> {
        let mut pass = Self {
            model,
            logits,
            dims: [rows.len(), len],
            most_probable: None,
            downloaded: None,
        };
        check(&pass.logits, model, pass.dims)?;
        if rows.iter().all(|row| row.sampler.is_argmax()) {
            let found = MostProbable::of(&pass.logits).read();
            pass.most_probable = Some(found.map_err(failed)?);
        }
        Ok(pass)
    }

    /// Returns the distribution of the token after position `index` of a row.
    ///
    /// # Errors
    /// If the logits are no numbers, or if the device fails.
    pub fn candidates(
        &mut self,
        sampler: &Sampler,
        [row, index]: [usize; 2],
        history: &[u32],
    ) -> Result<Vec<Candidate>, GenerateError> {
        let [_, len] = self.dims;
        let at = row * len + index;
        if let Some(Some(id)) = self.most_probable.as_ref().map(|found| found[at]) {
            return Ok(vec![Candidate {
                id,
                probability: 1.0,
            }]);
        }
        let logits = match &mut self.downloaded {
            Some(logits) => logits,
            none => none.insert(download(self.logits.clone(), self.model, self.dims)?),
        };
        let vocab = self.model.vocab_size();
        let logits = &mut logits[at * vocab..(at + 1) * vocab];
        Ok(sampler.candidates(logits, history)?)
    }
}
