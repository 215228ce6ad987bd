//! The distribution of tokens that are drafted from one distribution and verified by another.

use std::collections::BTreeMap;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use sparq::methods::Auto;
use sparq::{KvCacheConfig, Method, SparqConfig, SparqError};
use sparq_models::text::{
    Candidate, Sampler, SamplingConfig, SpeculativeConfig, SpeculativeDecoder, SpeculativeRow,
    judge,
};
use sparq_models::{CausalLm, ModelCache};

fn sampler(config: SamplingConfig) -> Sampler {
    Sampler::new(config).unwrap()
}

/// Asserts that counts follow probabilities: chi squared is below its quantile of about 1 - 10^-6.
fn assert_follows(counts: &BTreeMap<u32, usize>, expected: &[Candidate], what: &str) {
    let total: usize = counts.values().sum();
    let known = |id: &u32| expected.iter().any(|candidate| candidate.id == *id);
    assert!(counts.keys().all(known), "{what}: {counts:?}");
    let mut chi_squared = 0.0;
    for candidate in expected {
        let want = candidate.probability * total as f64;
        let found = counts.get(&candidate.id).copied().unwrap_or(0) as f64;
        chi_squared += (found - want).powi(2) / want;
    }
    // Wilson and Hilferty's approximation of the quantile.
    let freedom = (expected.len() - 1) as f64;
    let part = 2.0 / (9.0 * freedom);
    let bound = freedom * (1.0 - part + 4.75 * part.sqrt()).powi(3);
    let bound = if expected.len() == 1 { 0.0 } else { bound };
    assert!(
        chi_squared <= bound,
        "{what}: {chi_squared} above {bound}, {counts:?}"
    );
}

fn candidates(probabilities: &[f64]) -> Vec<Candidate> {
    let pairs = (0..).zip(probabilities);
    let pairs = pairs.filter(|(_, probability)| **probability > 0.0);
    pairs
        .map(|(id, &probability)| Candidate { id, probability })
        .collect()
}

#[test]
fn judged_tokens_follow_the_target_distribution() {
    let target = [0.4, 0.25, 0.2, 0.1, 0.05, 0.0];
    for (index, draft) in [
        target,
        [0.05, 0.1, 0.2, 0.25, 0.3, 0.1],
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        [0.7, 0.3, 0.0, 0.0, 0.0, 0.0],
        [0.39, 0.26, 0.2, 0.1, 0.04, 0.01],
    ]
    .iter()
    .enumerate()
    {
        let (draft, target) = (candidates(draft), candidates(&target));
        // The draws of the draft come from logits with these probabilities.
        let mut logits = vec![f32::NEG_INFINITY; 6];
        for candidate in &draft {
            logits[candidate.id as usize] = candidate.probability.ln() as f32;
        }
        let config = |seed| SamplingConfig {
            temperature: 1.0,
            seed,
            ..SamplingConfig::default()
        };
        let (mut drafter, mut judging) = (sampler(config(5)), sampler(config(6)));
        let mut counts = BTreeMap::new();
        let mut accepted = 0u32;
        for _ in 0..100_000 {
            let token = drafter.sample(&mut logits.clone(), &[]).unwrap();
            let replaced = judge(&mut judging, token, &draft, &target);
            accepted += u32::from(replaced.is_none());
            *counts.entry(replaced.unwrap_or(token)).or_insert(0) += 1;
        }
        assert_follows(&counts, &target, &format!("draft {index}"));
        // The acceptance is the sum of the smaller probabilities.
        let of = |candidates: &[Candidate], id| {
            let found = candidates.iter().find(|candidate| candidate.id == id);
            found.map_or(0.0, |candidate| candidate.probability)
        };
        let want: f64 = (0..6).map(|id| of(&draft, id).min(of(&target, id))).sum();
        let found = f64::from(accepted) / 1e5;
        assert!(
            (found - want).abs() < 0.008,
            "draft {index}: {found} for {want}"
        );
    }
}

/// A model whose logits depend on the last token only, and other logits in sparse steps.
struct MarkovLm {
    /// [last token, token], of dense and of sparse steps.
    logits: [[[f32; Self::VOCAB]; Self::VOCAB]; 2],
}

impl MarkovLm {
    const VOCAB: usize = 5;

    fn new() -> Self {
        let mut state = 9u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let dense = [(); Self::VOCAB].map(|()| [(); Self::VOCAB].map(|()| 2.0 * next()));
        let sparse = dense.map(|row| row.map(|logit| logit + next()));
        Self {
            logits: [dense, sparse],
        }
    }

    fn read(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        sparse: bool,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        let ids: Vec<i64> = tokens.try_into_vec_as().unwrap();
        let keys = Tensor::<4>::zeros([1, 1, ids.len(), 2], &self.device());
        cache.layers[0].append(keys.clone(), keys)?;
        let rows = ids[ids.len() - last..].iter();
        let rows = rows.flat_map(|&id| self.logits[usize::from(sparse)][id as usize]);
        let logits = TensorData::new(rows.collect(), [1, last, Self::VOCAB]);
        Ok(Tensor::from_data(logits, &self.device()))
    }
}

impl CausalLm for MarkovLm {
    fn vocab_size(&self) -> usize {
        Self::VOCAB
    }

    fn context_len(&self) -> usize {
        1_000
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
        Ok(ModelCache::new(vec![config.init(&self.device())?]))
    }

    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        self.read(tokens, cache, false, last)
    }

    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        self.read(tokens, cache, *method != Method::DENSE, 1)
    }
}

#[test]
fn decoded_tokens_follow_the_dense_distribution() {
    let model = MarkovLm::new();
    let draft = Auto::new(SparqConfig::new(1, 1), 1, &Device::default());
    let sampling = SamplingConfig {
        temperature: 0.8,
        top_k: 4,
        top_p: 0.97,
        repetition_penalty: 1.4,
        repetition_window: 2,
        seed: 4,
    };
    let mut own = sampler(sampling);
    // The two last tokens determine the distribution of the next one.
    let mut counts: BTreeMap<[u32; 2], BTreeMap<u32, usize>> = BTreeMap::new();
    for tokens in [1, 3, 6] {
        let config = SpeculativeConfig::new(draft).with_tokens(Some(tokens));
        let mut acceptance = None;
        for _ in 0..12 {
            let method = config.cache_method();
            let mut cache = model.new_cache(1, 1024, FloatDType::F32, &method).unwrap();
            let mut sequence = vec![0, 1];
            let first = Tensor::<2, Int>::from_ints([[0]], &model.device());
            model.prefill(first, &mut cache, 1).unwrap();
            let mut decoder = SpeculativeDecoder::new(&model, &mut cache, config).unwrap();
            while sequence.len() < 700 {
                let row = SpeculativeRow {
                    sequence: &sequence,
                    sampler: &mut own,
                    limit: 700 - sequence.len(),
                };
                let found = decoder.step(&mut [row]).unwrap().remove(0);
                sequence.extend(found);
            }
            acceptance = decoder.stats().acceptance();
            for window in sequence.windows(3) {
                let of_pair = counts.entry([window[0], window[1]]).or_default();
                *of_pair.entry(window[2]).or_insert(0) += 1;
            }
        }
        // Neither all tokens are accepted nor few.
        assert!((0.3..0.95).contains(&acceptance.unwrap()), "{acceptance:?}");
    }
    let total: usize = counts.values().flat_map(BTreeMap::values).sum();
    assert_eq!(total, 36 * 698);
    let mut tested = 0;
    for (pair, counts) in &counts {
        // Of fewer tokens, some are expected less than five times.
        if counts.values().sum::<usize>() < 400 {
            continue;
        }
        tested += 1;
        let mut logits = model.logits[0][pair[1] as usize];
        let expected = own.candidates(&mut logits, pair).unwrap();
        assert_follows(counts, &expected, &format!("{pair:?}"));
    }
    assert!(tested >= 8, "{tested} pairs");
}
