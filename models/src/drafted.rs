//! A model with other weights for drafts: [`DraftedLm`].

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{Method, SparqError};

use crate::{CausalLm, ModelCache};

/// A model whose sparse decode steps run with other weights, such as the same ones in fewer bits.
///
/// Drafts of a [`SpeculativeDecoder`](crate::text::SpeculativeDecoder) are sparse steps, so these
/// read fewer bytes, and the tokens are still those of dense attention with the first model. Both
/// models share the cache: each verification writes the keys and values of a draft anew.
///
/// ```
/// use burn::tensor::{Device, FloatDType};
/// use sparq_models::{CausalLm, Decoder, DecoderConfig, DraftedLm, embedded};
///
/// let (device, checkpoint) = (Device::default(), embedded::checkpoint()?);
/// let config = DecoderConfig::from_checkpoint(&checkpoint)?;
/// let load = || Decoder::load(&checkpoint, &config, FloatDType::F32, &device);
/// let model = DraftedLm::new(Box::new(load()?), Box::new(load()?))?;
/// assert_eq!(model.vocab_size(), config.vocab_size);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DraftedLm {
    model: Box<dyn CausalLm>,
    draft: Box<dyn CausalLm>,
}

impl DraftedLm {
    /// Combines a model with the weights of its drafts.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the models differ in vocabulary, device, layers or heads.
    pub fn new(model: Box<dyn CausalLm>, draft: Box<dyn CausalLm>) -> Result<Self, SparqError> {
        let describe = |model: &dyn CausalLm| {
            let cache = model.new_cache(1, 1, FloatDType::F32, &Method::DENSE)?;
            let layers: Vec<_> = cache.layers.iter().map(|layer| *layer.config()).collect();
            let layout = layers
                .first()
                .map_or([0; 2], |layer| [layer.kv_heads, layer.head_dim]);
            let text = format!(
                "{} tokens, {} layers of {} KV heads of {} components, on {:?}",
                model.vocab_size(),
                layers.len(),
                layout[0],
                layout[1],
                model.device(),
            );
            Ok::<_, SparqError>((text, layers))
        };
        let (expected, found) = (describe(model.as_ref())?, describe(draft.as_ref())?);
        match expected == found {
            true => Ok(Self { model, draft }),
            false => Err(SparqError::Value {
                what: "draft model",
                expected: format!("as the model, {}", expected.0),
                found: found.0,
            }),
        }
    }
}

impl CausalLm for DraftedLm {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn context_len(&self) -> usize {
        self.model.context_len().min(self.draft.context_len())
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError> {
        self.model.new_cache(batch, capacity, dtype, method)
    }

    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        self.model.prefill(tokens, cache, last)
    }

    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        match *method == Method::DENSE {
            true => self.model.decode(tokens, cache, method),
            false => self.draft.decode(tokens, cache, method),
        }
    }

    fn weight_bytes(&self, method: &Method) -> usize {
        match *method == Method::DENSE {
            true => self.model.weight_bytes(method),
            false => self.draft.weight_bytes(method),
        }
    }

    fn is_capturable(&self) -> bool {
        self.model.is_capturable() && self.draft.is_capturable()
    }
}
