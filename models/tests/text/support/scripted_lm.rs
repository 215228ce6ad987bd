//! A model with a scripted reply that records its calls: [`ScriptedLm`].

use std::sync::Mutex;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use sparq::{KvCacheConfig, Method, SparqError};
use sparq_models::{CausalLm, ModelCache};

/// A call of the model, with the tokens it read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Prefill(Vec<u32>),
    Decode(u32),
}

/// A model that predicts the token at index n of its script after a sequence of n tokens.
///
/// Its cache has one layer whose keys are the tokens, so tests can read the tokens from the cache.
pub struct ScriptedLm {
    pub script: Vec<u32>,
    /// The script of sparse decode steps, if they have their own.
    pub drafts: Option<Vec<u32>>,
    pub context_len: usize,
    /// A token nearly as probable as that of the script.
    pub second: Option<u32>,
    /// The sequence length at which the model fails, after it has appended to the cache.
    pub fails_at: Option<usize>,
    /// The sequence length at which a logit is NaN.
    pub nan_at: Option<usize>,
    pub calls: Mutex<Vec<Call>>,
}

impl ScriptedLm {
    pub const VOCAB: usize = 300;

    /// Makes a model that answers `reply` to a prompt of `prompt_len` tokens.
    pub fn new(prompt_len: usize, reply: &[u32]) -> Self {
        let mut script = vec![0; prompt_len];
        script.extend_from_slice(reply);
        Self {
            script,
            drafts: None,
            context_len: 1_000,
            second: None,
            fails_at: None,
            nan_at: None,
            calls: Mutex::new(Vec::new()),
        }
    }

    /// Returns the calls since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Returns the tokens in a cache of this model.
    pub fn tokens_in(cache: &ModelCache) -> Vec<u32> {
        let layer = &cache.layers[0];
        let keys: Vec<f32> = layer.tensors().k.floats().try_into_vec_as().unwrap();
        let tokens = keys.iter().step_by(2).map(|&key| key as u32);
        tokens.take(layer.len()).collect()
    }

    /// Appends tokens and returns the logits of the last `last` positions.
    fn read(
        &self,
        tokens: Vec<u32>,
        cache: &mut ModelCache,
        last: usize,
        script: &[u32],
    ) -> Result<Tensor<3>, SparqError> {
        let device = self.device();
        let keys: Vec<f32> = tokens.iter().flat_map(|&id| [id as f32; 2]).collect();
        let keys = Tensor::<4>::from_data(TensorData::new(keys, [1, 1, tokens.len(), 2]), &device);
        let layer = &mut cache.layers[0];
        layer.append(keys.clone(), keys)?;
        let len = layer.len();
        if self.fails_at == Some(len) {
            return Err(SparqError::Value {
                what: "scripted failure",
                expected: "no failure".to_owned(),
                found: len.to_string(),
            });
        }
        let mut logits = vec![0.0f32; last * Self::VOCAB];
        for (row, len) in logits.chunks_exact_mut(Self::VOCAB).zip(len + 1 - last..) {
            if let Some(second) = self.second {
                row[second as usize] = 0.75;
            }
            row[script.get(len).copied().unwrap_or(0) as usize] = 1.0;
            if self.nan_at == Some(len) {
                row[7] = f32::NAN;
            }
        }
        let logits = TensorData::new(logits, [1, last, Self::VOCAB]);
        Ok(Tensor::from_data(logits, &device))
    }
}

fn ids(tokens: Tensor<2, Int>) -> Vec<u32> {
    let ids: Vec<i64> = tokens.try_into_vec_as().unwrap();
    ids.into_iter()
        .map(|id| u32::try_from(id).unwrap())
        .collect()
}

impl CausalLm for ScriptedLm {
    fn vocab_size(&self) -> usize {
        Self::VOCAB
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn device(&self) -> Device {
        Device::default()
    }

    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError> {
        let config = KvCacheConfig::new(batch, 1, 2)
            .with_capacity(capacity)
            .with_dtype(dtype)
            .with_sketch(method.sketch());
        Ok(ModelCache::new(vec![config.init(&self.device()).unwrap()]))
    }

    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        let tokens = ids(tokens);
        self.calls
            .lock()
            .unwrap()
            .push(Call::Prefill(tokens.clone()));
        self.read(tokens, cache, last, &self.script)
    }

    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        let tokens = ids(tokens);
        assert_eq!(tokens.len(), 1);
        self.calls.lock().unwrap().push(Call::Decode(tokens[0]));
        let drafts = self.drafts.as_ref().filter(|_| *method != Method::DENSE);
        self.read(tokens, cache, 1, drafts.unwrap_or(&self.script))
    }
}
