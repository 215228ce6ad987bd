//! A cache whose bytes and elements exceed 32-bit indices, filled with random numbers of the
//! device. Three of its heads are judged.

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use sparq::{KvCacheConfig, Method, Sketch, SparqConfig};

use super::rng::Rng;
use super::session::{floats, part, positions};
use super::verdict::{self, Found, Worst};
use crate::Problem;
use crate::float64::stages::HeadInput;

/// Sizes and settings of the case.
pub(super) struct Huge {
    pub(super) problem: Problem,
    pub(super) config: SparqConfig,
    pub(super) dtype: FloatDType,
    /// Positions per append.
    pub(super) chunk: usize,
}

impl Huge {
    /// K, V and sketch take 8.5 GiB each in a 16-bit type, and have more than 2^32 elements each.
    pub(super) fn new(dtype: FloatDType) -> Self {
        Self {
            problem: Problem {
                batch: 1,
                n_heads: 34,
                n_kv_heads: 17,
                head_dim: 256,
                seq: 1 << 20,
            },
            config: SparqConfig::new(32, 128).with_sketch(Sketch::Full),
            dtype,
            chunk: 1 << 14,
        }
    }

    /// Returns sizes and settings in short.
    pub(super) fn describe(&self) -> String {
        let (rank, top_k) = (self.config.rank, self.config.top_k);
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        format!("{} r{rank} k{top_k} Full {dtype}", self.problem)
    }

    /// Fills the cache, with the last position in an append of its own. Judges one decode step of
    /// the first, the last and one other head. An error describes the first wrong result.
    pub(super) fn run(&self, rng: &mut Rng, device: &Device) -> Result<Worst, String> {
        let problem = &self.problem;
        let (heads, d, seq) = (problem.n_kv_heads, problem.head_dim, problem.seq);
        let error = |error: sparq::SparqError| error.to_string();
        let config = KvCacheConfig::new(1, heads, d)
            .with_capacity(seq)
            .with_dtype(self.dtype)
            .with_sketch(Some(self.config.sketch));
        let mut cache = config.init(device).map_err(error)?;
        let judged = [0, rng.below(heads), heads - 1];
        let mut keys = judged.map(|_| Vec::with_capacity(seq * d));
        let mut values = keys.clone();
        device.seed(rng.below(1 << 30) as u64);
        while cache.len() < seq {
            // The last position is appended as a single token.
            let len = self.chunk.min(seq - 1 - cache.len()).max(1);
            let drawn = || {
                let shape = [1, heads, len, d];
                Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(self.dtype)
            };
            let (k, v) = (drawn(), drawn());
            for (i, &h) in judged.iter().enumerate() {
                let head = |t: &Tensor<4>| floats(t.clone().slice_dim(1, h..h + 1));
                keys[i].extend(head(&k)?);
                values[i].extend(head(&v)?);
            }
            cache.append(k, v).map_err(error)?;
        }

        let group = problem.group_size();
        let q: Vec<f32> = (0..problem.n_heads * d).map(|_| rng.normal()).collect();
        let query = burn::tensor::TensorData::new(q.clone(), problem.query());
        let query = Tensor::<4>::from_data(query, (device, burn::tensor::DType::F32));
        let step = self.config.decode_traced(query.clone(), &mut cache);
        let step = step.map_err(error)?;
        let selected = positions(step.positions, problem, seq, self.config.top_k)?;
        let (output, alpha) = (floats(step.output)?, floats(step.alpha)?);
        let dense = Method::DENSE.decode(query, &mut cache);
        let dense = floats(dense.map_err(error)?)?;
        let each = group * d;
        let mut worst = Worst::default();
        for (i, &h) in judged.iter().enumerate() {
            let input = HeadInput {
                config: &self.config,
                q: part(&q, h, each),
                k: &keys[i],
                v: &values[i],
                head_dim: d,
                valid: 0..seq,
            };
            let found = Found {
                selected: &selected[h * seq..][..seq],
                alpha: part(&alpha, h, group),
                output: part(&output, h, each),
                dtype: FloatDType::F32,
            };
            let sparse = verdict::sparse(&input, None, &found);
            let dense = verdict::dense(&input, part(&dense, h, each), FloatDType::F32);
            for here in [sparse, dense] {
                worst = worst.and(here.map_err(|reason| format!("head {h}: {reason}"))?);
            }
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, FloatDType};

    use super::{Huge, Rng};

    #[test]
    fn a_small_version_passes() {
        let mut small = Huge::new(FloatDType::F32);
        assert!(small.problem.cache().iter().product::<usize>() > 1 << 32);
        small.problem.n_heads = 6;
        small.problem.n_kv_heads = 3;
        small.problem.head_dim = 32;
        small.problem.seq = 1000;
        small.chunk = 300;
        let done = small.run(&mut Rng::new(1), &Device::default());
        assert!(done.is_ok(), "{done:?}");
    }
}
