//! Cases of causal attention: prefills, and few queries at the end of a long cache. Float64
//! arithmetic on the rounded inputs gives the expected outputs.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use sparq::ops::RowTensors;
use sparq::{KvCache, KvCacheConfig, RowFormat, SparqError, ops};

use crate::judge::{Precision, TOLERANCE};
use crate::observe::read;
use crate::random::{Rng, Size, Worst};
use crate::runner::{message, name};
use crate::{Array, Differences, Kind, Outcome, Problem, Report};

/// The sizes of a prefill.
#[derive(Clone, Debug)]
pub(crate) struct Prefill {
    /// The sizes, with the end of the longest sequence.
    problem: Problem,
    /// T: the queries of each sequence.
    len: usize,
    /// The positions of each sequence before the queries.
    before: Vec<usize>,
    /// The left padding of each sequence.
    padding: Vec<usize>,
    /// The sliding window.
    window: Option<usize>,
    /// How keys and values are stored.
    rows: RowFormat,
    /// The type of keys and values.
    dtype: FloatDType,
    /// The type of the queries.
    query: FloatDType,
}

/// The content of a prefill, rounded to its types.
struct Content {
    /// [B, H, T, d].
    q: Vec<f32>,
    /// Keys and values before the queries, [B, H_kv, longest, d] each.
    old: [Vec<f32>; 2],
    /// Keys and values of the queries, [B, H_kv, T, d] each.
    new: [Vec<f32>; 2],
    /// Keys and values as the cache holds them, [B, H_kv, S, d] each, if they are codes.
    stored: Option<[Vec<f32>; 2]>,
}

/// Checks causal attention on a device, with queries, keys and values in `dtype`. Calls `done`
/// after each case.
///
/// The inputs are random numbers of fixed seeds. The cases cover groups, head dimensions, one to
/// many queries, chunks, windows, left padding and ragged batches.
pub fn run_prefills(device: &Device, dtype: FloatDType, mut done: impl FnMut(&Outcome)) -> Report {
    let outcomes = cases(dtype).into_iter().enumerate().map(|(seed, case)| {
        let (name, prefill) = case;
        let mut outcome = Outcome::new(name.into(), Kind::Prefill, prefill.to_string());
        if device.supports_dtype(dtype) {
            prefill.judge(&mut outcome, &mut Rng::new(seed as u64), device);
        } else {
            outcome.fail(|| format!("the device does not compute in {dtype:?}"));
        }
        done(&outcome);
        outcome
    });
    let outcomes = outcomes.collect();
    Report::new(name(device), format!("{dtype:?}"), outcomes)
}

/// Returns the named cases.
fn cases(dtype: FloatDType) -> Vec<(&'static str, Prefill)> {
    let case = |name, [n_heads, n_kv_heads, head_dim]: [usize; 3], len, before: &[usize]| {
        let longest = before.iter().max().copied().unwrap_or(0);
        let prefill = Prefill {
            problem: Problem {
                batch: before.len(),
                n_heads,
                n_kv_heads,
                head_dim,
                seq: longest + len,
            },
            len,
            before: before.to_vec(),
            padding: vec![0; before.len()],
            window: None,
            rows: RowFormat::Float,
            dtype,
            query: dtype,
        };
        (name, prefill)
    };
    let window = |(name, prefill), window| {
        let window = Some(window);
        (name, Prefill { window, ..prefill })
    };
    let padded = |(name, prefill), padding: &[usize]| {
        let padding = padding.to_vec();
        (name, Prefill { padding, ..prefill })
    };
    let int8 = |(name, prefill)| {
        let rows = RowFormat::Int8;
        (name, Prefill { rows, ..prefill })
    };
    vec![
        case("prefill_one_query", [4, 2, 64], 1, &[40]),
        case("prefill_two_queries", [4, 4, 128], 2, &[700]),
        case("prefill_few_queries", [8, 2, 128], 5, &[1000]),
        case("prefill_sixteen_queries", [4, 1, 64], 16, &[515]),
        case("prefill_mha", [3, 3, 64], 130, &[0]),
        case("prefill_gqa", [8, 2, 128], 200, &[0, 0]),
        case("prefill_group_of_8", [8, 1, 80], 65, &[0]),
        case("prefill_chunk", [4, 2, 96], 64, &[300]),
        case("prefill_d256", [2, 1, 256], 70, &[129]),
        case("prefill_d32", [4, 4, 32], 257, &[7]),
        window(case("prefill_window", [4, 2, 64], 150, &[100]), 33),
        window(case("prefill_window_of_1", [2, 2, 64], 20, &[5]), 1),
        window(case("prefill_window_few", [4, 1, 128], 5, &[600]), 128),
        padded(
            case("prefill_left_padding", [4, 2, 64], 90, &[0; 4]),
            &[0, 13, 64, 89],
        ),
        case("prefill_ragged", [4, 2, 64], 33, &[0, 70, 301]),
        window(case("prefill_ragged_few", [4, 2, 128], 3, &[2, 400]), 100),
        int8(case("prefill_int8_few", [6, 2, 64], 5, &[300])),
        int8(case("prefill_int8_gqa", [8, 2, 128], 200, &[70, 70])),
        int8(window(
            case("prefill_int8_window", [4, 2, 80], 90, &[100]),
            33,
        )),
        int8(case("prefill_int8_ragged", [4, 2, 64], 33, &[0, 70, 301])),
    ]
}

impl Prefill {
    /// Draws sizes. `dtype` is the type of keys and values, `query` that of the queries.
    pub(crate) fn draw(rng: &mut Rng, size: Size, dtype: FloatDType, query: FloatDType) -> Self {
        let (most_queries, most_before, products) = match size {
            Size::Small => (40, 290, 2_000_000),
            Size::Medium => (300, 2000, 60_000_000),
            Size::Large | Size::Huge => (64, 1 << 17, 600_000_000),
        };
        let head_dim = match rng.once_in(10) {
            true => rng.pick(&[4, 8, 20, 36, 48, 112, 160]),
            false => rng.pick(&[32, 64, 80, 96, 128, 256]),
        };
        let mut len = match rng.below(3) {
            0 => rng.within(1, 16),
            1 => rng.doubling(1, most_queries),
            _ => (rng.pick(&[16, 32, 64, 128, 256]) + rng.below(3) - 1).min(most_queries),
        };
        let mut longest = match rng.once_in(4) {
            true => 0,
            false => rng.doubling(1, most_before),
        };
        let mut batch = rng.within(1, 3);
        let mut kv_heads = rng.pick(&[1, 1, 2, 3, 4]);
        let mut group = rng.pick(&[1, 1, 2, 3, 4, 5, 7, 8]);
        let mut halve = [
            &mut batch,
            &mut kv_heads,
            &mut group,
            &mut len,
            &mut longest,
        ];
        loop {
            let [batch, kv_heads, group, len, longest] = halve.each_ref().map(|size| **size);
            if batch * kv_heads * group * len * (len + longest) * head_dim <= products {
                break;
            }
            if let Some(size) = halve.iter_mut().find(|size| ***size > 1) {
                **size /= 2;
            }
        }
        let ragged = rng.once_in(2);
        let mut before: Vec<usize> = (0..batch)
            .map(|_| {
                if ragged {
                    rng.within(0, longest)
                } else {
                    longest
                }
            })
            .collect();
        before[0] = longest;
        let padded = rng.once_in(4);
        let padding = (0..batch).map(|_| match padded {
            true => rng.within(0, longest + len - 1),
            false => 0,
        });
        let padding = padding.collect();
        let window = rng.once_in(3).then(|| rng.doubling(1, longest + len));
        let rows = match rng.once_in(4) {
            true => RowFormat::Int8,
            false => RowFormat::Float,
        };
        Self {
            problem: Problem {
                batch,
                n_heads: kv_heads * group,
                n_kv_heads: kv_heads,
                head_dim,
                seq: longest + len,
            },
            len,
            before,
            padding,
            window,
            rows,
            dtype,
            query,
        }
    }

    /// Runs the case and writes the result to `outcome`. Every error, including a panic of the
    /// backend, makes a failed outcome.
    fn judge(&self, outcome: &mut Outcome, rng: &mut Rng, device: &Device) {
        // Nothing that the closure borrows is used after a panic.
        match catch_unwind(AssertUnwindSafe(|| self.run(rng, device))) {
            Ok(Ok(worst)) => {
                outcome.tolerance = worst.allowed as f32;
                outcome.differences = Differences {
                    output: Some(worst.output as f32),
                    ..Differences::default()
                };
            }
            Ok(Err(reason)) => outcome.fail(|| reason),
            Err(panic) => outcome.fail(|| format!("panic: {}", message(panic.as_ref()))),
        }
    }

    /// Runs the case. An error describes the first wrong output.
    pub(crate) fn run(&self, rng: &mut Rng, device: &Device) -> Result<Worst, String> {
        let mut content = self.content(rng)?;
        let cache = self.fill(&content, rng.within(1, 70), device);
        let cache = cache.map_err(|error| error.to_string())?;
        content.stored = self.stored(&cache)?;
        let found = self.attend(&content, &cache, device);
        let found: Array<f32> = read("output", found)?;
        let mut worst = Worst::default();
        for (at, found) in found.rows().enumerate() {
            let (row, query) = (at / self.len, at % self.len);
            let (sequence, head) = (row / self.problem.n_heads, row % self.problem.n_heads);
            worst = worst.and(
                self.judge_query(&content, [sequence, head, query], found)
                    .map_err(|reason| format!("[{sequence}, {head}, {query}]: {reason}"))?,
            );
        }
        Ok(worst)
    }

    /// Draws the content. The queries of some heads are large, so that few keys have all the
    /// weight.
    fn content(&self, rng: &mut Rng) -> Result<Content, String> {
        let Problem {
            batch,
            n_heads,
            n_kv_heads,
            head_dim,
            ..
        } = self.problem;
        let precision = |dtype| Precision::of(dtype).ok_or("expected F32, F16 or BF16");
        let (of_query, of_cache) = (precision(self.query)?.round, precision(self.dtype)?.round);
        let mut q = Vec::new();
        for _ in 0..batch * n_heads {
            let size = rng.pick(&[1.0, 1.0, 6.0]);
            q.extend((0..self.len * head_dim).map(|_| of_query(size * rng.normal())));
        }
        let longest = self.before.iter().copied().max().unwrap_or(0);
        let mut rows = |len: usize| {
            let count = batch * n_kv_heads * len * head_dim;
            [(); 2].map(|()| (0..count).map(|_| of_cache(rng.normal())).collect())
        };
        Ok(Content {
            q,
            old: rows(longest),
            new: rows(self.len),
            stored: None,
        })
    }

    /// Makes a tensor [B, heads, len, d].
    fn tensor(
        &self,
        values: &[f32],
        heads: usize,
        dtype: FloatDType,
        device: &Device,
    ) -> Tensor<4> {
        let (batch, head_dim) = (self.problem.batch, self.problem.head_dim);
        let len = values.len() / (batch * heads * head_dim);
        let data = TensorData::new(values.to_vec(), [batch, heads, len, head_dim]);
        Tensor::<4>::from_data(data, (device, DType::F32)).cast(dtype)
    }

    /// Makes a cache of the content with `extra` positions of NaN after its end.
    fn fill(
        &self,
        content: &Content,
        extra: usize,
        device: &Device,
    ) -> Result<KvCache, SparqError> {
        let Problem {
            batch,
            n_kv_heads,
            head_dim,
            seq,
            ..
        } = self.problem;
        let tensor = |values: &[f32], heads, dtype| self.tensor(values, heads, dtype, device);
        let config = KvCacheConfig::new(batch, n_kv_heads, head_dim)
            .with_capacity(seq + extra)
            .with_dtype(self.dtype)
            .with_rows(self.rows)
            .with_window(self.window);
        let mut cache = config.init(device)?;
        let nan = vec![f32::NAN; batch * n_kv_heads * cache.capacity() * head_dim];
        let nan = tensor(&nan, n_kv_heads, self.dtype);
        cache.append(nan.clone(), nan)?;
        cache.clear();
        cache.set_left_padding(&self.padding)?;
        if self.before.iter().any(|&before| before > 0) {
            let [k, v] = content.old.each_ref();
            let [k, v] = [k, v].map(|rows| tensor(rows, n_kv_heads, self.dtype));
            cache.append_ragged(k, v, &self.before)?;
        }
        let [k, v] = content.new.each_ref();
        let [k, v] = [k, v].map(|rows| tensor(rows, n_kv_heads, self.dtype));
        cache.append(k, v)?;
        Ok(cache)
    }

    /// Reads keys and values back if they are codes. The checks of decode steps compare codes with
    /// what was appended.
    fn stored(&self, cache: &KvCache) -> Result<Option<[Vec<f32>; 2]>, String> {
        if self.rows == RowFormat::Float {
            return Ok(None);
        }
        let tensors = cache.tensors();
        let read = |rows: &RowTensors| {
            let array: Array<f32> = read("rows", rows.at(0..cache.len()))?;
            Ok::<_, String>(array.values().to_vec())
        };
        Ok(Some([read(&tensors.k)?, read(&tensors.v)?]))
    }

    /// Computes the outputs on the device, [B, H, T, d].
    fn attend(&self, content: &Content, cache: &KvCache, device: &Device) -> Tensor<4> {
        let tensors = cache.tensors();
        let q = self.tensor(&content.q, self.problem.n_heads, self.query, device);
        let rows = [tensors.k.clone(), tensors.v.clone()];
        let (device_spans, spans) = (tensors.spans.clone(), cache.spans());
        let y = ops::causal_attention(q, rows, device_spans, spans, self.window, None);
        y.cast(FloatDType::F32)
    }

    /// Judges the output [d] of one query of a sequence and head.
    fn judge_query(
        &self,
        content: &Content,
        [sequence, head, query]: [usize; 3],
        found: &[f32],
    ) -> Result<Worst, String> {
        let Problem {
            n_heads,
            n_kv_heads,
            head_dim: d,
            ..
        } = self.problem;
        let (before, len) = (self.before[sequence], self.len);
        let longest = self.before.iter().copied().max().unwrap_or(0);
        let own = before + query;
        let window = self.window.unwrap_or(usize::MAX);
        // Left padding attends to itself.
        let first = self.padding[sequence].min(own);
        let first = first.max((own + 1).saturating_sub(window));
        let batch_head = sequence * n_kv_heads + head / (n_heads / n_kv_heads);
        // Part 0 are the keys, part 1 the values.
        let row = |part: usize, position: usize| {
            let (rows, at) = match &content.stored {
                Some(stored) => (&stored[part], batch_head * self.problem.seq + position),
                None if position < before => (&content.old[part], batch_head * longest + position),
                None => (&content.new[part], batch_head * len + position - before),
            };
            &rows[at * d..(at + 1) * d]
        };
        let q = &content.q[((sequence * n_heads + head) * len + query) * d..][..d];
        let (mut logits, mut size) = (Vec::new(), 0f64);
        for position in first..=own {
            let products = q.iter().zip(row(0, position));
            let products = products.map(|(&q, &k)| f64::from(q) * f64::from(k));
            let (sum, of_sizes) =
                products.fold((0.0, 0.0), |(sum, sizes), x| (sum + x, sizes + f64::abs(x)));
            logits.push(sum / (d as f64).sqrt());
            size = size.max(of_sizes / (d as f64).sqrt());
        }
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (mut expected, mut sizes) = (vec![0f64; d], vec![0f64; d]);
        for (position, weight) in (first..=own).zip(&weights) {
            for (c, &value) in row(1, position).iter().enumerate() {
                expected[c] += weight / total * f64::from(value);
                sizes[c] += weight / total * f64::from(value.abs());
            }
        }
        let bounds = self.bounds(size, &expected, &sizes)?;
        let mut worst = Worst::default();
        for (c, &found) in found.iter().enumerate() {
            let (difference, allowed) = ((f64::from(found) - expected[c]).abs(), bounds[c]);
            if difference.is_nan() || difference > allowed {
                let expected = expected[c];
                return Err(format!(
                    "component {c}: expected {expected:e} within {allowed:.1e}, found {found:e}"
                ));
            }
            worst = worst.and(Worst::of_output(difference, allowed));
        }
        Ok(worst)
    }

    /// Returns the allowed differences of the outputs of a query.
    ///
    /// The output is rounded to the query's type. A device may round the weights, which are at most
    /// 1, and the query to the type of the cache, as matrix units need. An error of e in all logits
    /// changes a weight by a factor of at most exp(2e). `size` is the largest sum of the sizes of
    /// the products in a logit, `sizes` are the weighted means of the values' sizes.
    fn bounds(&self, size: f64, expected: &[f64], sizes: &[f64]) -> Result<Vec<f64>, String> {
        let error = |dtype| Precision::of(dtype).map(|precision| f64::from(precision.error));
        let (of_query, of_cache) = error(self.query)
            .zip(error(self.dtype))
            .ok_or("expected F32, F16 or BF16")?;
        // Codes become floats of the queries' type.
        let coded = self.rows != RowFormat::Float;
        let of_cache = if coded { of_query } else { of_cache };
        let of_logits = match self.query == self.dtype && !coded {
            true => 0.0,
            false => (2.0 * of_cache * size).exp() - 1.0,
        };
        let pairs = expected.iter().zip(sizes);
        let bound = |(expected, size): (&f64, &f64)| {
            let exact = f64::from(TOLERANCE) * size.max(1.0);
            exact + of_query * expected.abs() + (of_cache + of_logits) * size
        };
        Ok(pairs.map(bound).collect())
    }
}

impl fmt::Display for Prefill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} T{}", self.problem, self.len)?;
        if self.rows != RowFormat::Float {
            write!(f, " rows {}", self.rows)?;
        }
        if let Some(window) = self.window {
            write!(f, " W{window}")?;
        }
        if self.before.iter().any(|&before| before != self.before[0]) {
            write!(f, " after {:?}", self.before)?;
        }
        match self.padding.iter().any(|&padding| padding > 0) {
            true => write!(f, " padding {:?}", self.padding),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
