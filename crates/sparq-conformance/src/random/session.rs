//! Runs a plan on a device and judges every decode step.

use std::num::NonZero;
use std::thread::available_parallelism;

use burn::tensor::{DType, Device, Float, FloatDType, Int, Tensor};
use sparq::ops::{self, RowTensors, SketchTensors, sketch};
use sparq::{KvCache, KvCacheConfig, Method};

use super::layout::Layout;
use super::mirror::Mirror;
use super::plan::{Operation, Plan};
use super::rng::Rng;
use super::verdict::{self, Found, Worst};
use crate::float64::stages::Codes;
use crate::judge::Precision;
use crate::observe::{marks, read};
use crate::{Array, Problem};

/// A cache on a device and its expected content.
struct Session<'p> {
    plan: &'p Plan,
    device: Device,
    cache: KvCache,
    mirror: Mirror,
}

/// Runs all operations. An error describes the first wrong result and its operation.
pub(super) fn run(plan: &Plan, rng: &mut Rng, device: &Device) -> Result<Worst, String> {
    let problem = &plan.problem;
    let config = KvCacheConfig::new(problem.batch, problem.n_kv_heads, problem.head_dim)
        .with_capacity(plan.capacity)
        .with_dtype(plan.dtype)
        .with_rows(plan.config.rows)
        .with_sketch(Some(plan.config.sketch));
    let cache = config.init(device).and_then(|mut cache| {
        cache.set_left_padding(&plan.padding)?;
        Ok(cache)
    });
    let mut session = Session {
        plan,
        device: device.clone(),
        cache: cache.map_err(|error| error.to_string())?,
        mirror: Mirror::new(problem, plan.config.sketch, &plan.padding),
    };
    let mut worst = Worst::default();
    for (at, operation) in plan.operations.iter().enumerate() {
        let done = session.run(operation, rng);
        worst = worst.and(done.map_err(|reason| {
            let (number, all) = (at + 1, plan.operations.len());
            let len = session.mirror.len();
            format!("operation {number} of {all}, S = {len}: {reason}")
        })?);
    }
    session.check_contents()?;
    Ok(worst)
}

impl Session<'_> {
    fn run(&mut self, operation: &Operation, rng: &mut Rng) -> Result<Worst, String> {
        match operation {
            Operation::Append {
                counts,
                layout,
                shared,
            } => {
                let before = shared.then(|| (self.cache.clone(), self.mirror.clone()));
                self.append(rng, counts, *layout)?;
                let Some((cache, mirror)) = before else {
                    return Ok(Worst::default());
                };
                // The clone must keep its content, and the original must hold the appended
                // positions.
                let now = (
                    std::mem::replace(&mut self.cache, cache),
                    std::mem::replace(&mut self.mirror, mirror),
                );
                let decoded = match self.mirror.len() {
                    0 => Ok(Worst::default()),
                    _ => self.decode(rng, Layout::Plain),
                };
                (self.cache, self.mirror) = now;
                decoded.map_err(|reason| format!("in the clone from before the append: {reason}"))
            }
            Operation::Truncate(len) => {
                self.cache.truncate(*len);
                self.mirror.truncate(*len);
                Ok(Worst::default())
            }
            // The first part of a prefill may be empty.
            Operation::Decode { .. } if self.mirror.len() == 0 => Ok(Worst::default()),
            Operation::Decode { layout } => self.decode(rng, *layout),
        }
    }

    fn append(&mut self, rng: &mut Rng, counts: &[usize], layout: Layout) -> Result<(), String> {
        let problem = &self.plan.problem;
        let (heads, d) = (problem.n_kv_heads, problem.head_dim);
        let len = counts.iter().copied().max().unwrap_or(0);
        if len == 0 {
            return Ok(());
        }
        let shape = [problem.batch, heads, len, d];
        let size = shape.iter().product();
        let (mut k, mut v) = (vec![0f32; size], vec![0f32; size]);
        let parts = k.chunks_exact_mut(len * d);
        let parts = parts.zip(v.chunks_exact_mut(len * d));
        for ((at, (keys, values)), content) in parts.enumerate().zip(&self.plan.contents) {
            let first = self.mirror.spans.end[at / heads];
            let parts = keys.chunks_exact_mut(d).zip(values.chunks_exact_mut(d));
            for (t, (key, value)) in parts.enumerate() {
                content.key(rng, first + t, self.plan.dtype, key);
                content.value(rng, first + t, self.plan.dtype, value);
            }
        }
        let tensors = [&mut k, &mut v].map(|values| {
            layout.adapt(values, shape);
            layout.tensor(values, shape, self.plan.input, &self.device)
        });
        let [keys, values] = tensors;
        let appended = self.cache.append_ragged(keys, values, counts);
        appended.map_err(|error| error.to_string())?;
        let tensors = self.cache.tensors();
        self.store("K", &tensors.k, &mut k, counts)?;
        self.store("V", &tensors.v, &mut v, counts)?;
        self.mirror.append(&k, &v, len, counts);
        Ok(())
    }

    /// Replaces appended keys or values [B, H_kv, T, d] by what the cache holds: rounds them to its
    /// type, or reads codes back and checks them.
    fn store(
        &self,
        name: &str,
        rows: &RowTensors,
        appended: &mut [f32],
        counts: &[usize],
    ) -> Result<(), String> {
        let RowTensors::Int8 { scale, .. } = rows else {
            return self.round(appended, self.plan.dtype);
        };
        self.round(appended, self.plan.input)?;
        let (d, heads) = (self.plan.problem.head_dim, self.plan.problem.n_kv_heads);
        let len = self.cache.len();
        let stored = floats(rows.at(0..len))?;
        let scales = floats(scale.clone().slice_dim(2, 0..len))?;
        let tokens = appended.len() / (counts.len() * heads * d);
        for (at, rows) in appended.chunks_exact_mut(tokens * d).enumerate() {
            let first = at * len + self.mirror.spans.end[at / heads];
            let rows = rows.chunks_exact_mut(d).take(counts[at / heads]);
            for (row, appended) in (first..).zip(rows) {
                let stored = &stored[row * d..(row + 1) * d];
                check_row(appended, stored, scales[row]).map_err(|reason| {
                    format!("{name} of [{at}], position {}: {reason}", row - at * len)
                })?;
                appended.copy_from_slice(stored);
            }
        }
        Ok(())
    }

    /// Runs and judges a decode step of dense attention and one of SparQ.
    fn decode(&mut self, rng: &mut Rng, layout: Layout) -> Result<Worst, String> {
        let (problem, config) = (&self.plan.problem, &self.plan.config);
        let shape = problem.query();
        let group = problem.group_size();
        let mut q = vec![0f32; shape.iter().product()];
        let queries = q.chunks_exact_mut(group * problem.head_dim);
        for (queries, content) in queries.zip(&self.plan.contents) {
            content.query(rng, queries);
        }
        layout.adapt(&mut q, shape);
        let query = layout.tensor(&q, shape, self.plan.query, &self.device);
        self.round(&mut q, self.plan.query)?;

        let error = |error: sparq::SparqError| error.to_string();
        let step = config
            .decode_traced(query.clone(), &mut self.cache)
            .map_err(error)?;
        self.mirror.refresh(config);
        let dense = Method::DENSE.decode(query.clone(), &mut self.cache);
        let dense = floats(dense.map_err(error)?)?;
        let mut method = None;
        if self.mirror.len() <= config.top_k {
            // If all positions are selected, the method runs dense attention.
            let all = Method::from(*config).decode(query.clone(), &mut self.cache);
            method = Some(floats(all.map_err(error)?)?);
        }
        let (output, alpha) = (floats(step.output)?, floats(step.alpha)?);
        let given = floats(self.attend_to_neighbours(query, step.positions.clone()))?;
        let selected = positions(step.positions, problem, self.mirror.len(), config.top_k)?;
        let sketch = self.sketch()?;

        let (plan, mirror, len) = (self.plan, &self.mirror, self.mirror.len());
        let each = group * problem.head_dim;
        self.for_each_head(|at| {
            let input = mirror.input(at, part(&q, at, each), config);
            let codes = match &sketch {
                None => None,
                Some(sketch) => {
                    let (codes, zero_points) = sketch.head(at, problem.head_dim, len);
                    check_codes(plan, mirror, at, codes, zero_points)?;
                    Some(codes)
                }
            };
            let found = Found {
                selected: &selected[at * len..][..len],
                alpha: part(&alpha, at, group),
                output: part(&output, at, each),
                dtype: plan.query,
            };
            let worst = verdict::sparse(&input, codes, &found)?;
            if let Some(method) = &method {
                verdict::dense(&input, part(method, at, each), plan.query)?;
            }
            let of_neighbour = &selected[neighbour(at, problem.n_kv_heads) * len..][..len];
            let given = part(&given, at, each);
            let given = verdict::given(&input, of_neighbour, given, plan.query)?;
            let dense = verdict::dense(&input, part(&dense, at, each), plan.query)?;
            Ok(worst.and(given).and(dense))
        })
    }

    /// Attends with every KV head to the positions that the next one selected, as a layer does that
    /// takes those of another.
    fn attend_to_neighbours(&self, query: Tensor<4>, positions: Tensor<3, Int>) -> Tensor<4> {
        let kv_heads = self.plan.problem.n_kv_heads;
        let heads: Vec<u32> = (0..kv_heads)
            .map(|head| neighbour(head, kv_heads) as u32)
            .collect();
        let heads = Tensor::from_data(heads.as_slice(), (&self.device, DType::U32));
        let tensors = self.cache.tensors().clone();
        ops::attend_positions(query, tensors, positions, heads, self.cache.spans())
    }

    /// Judges all batch heads, on as many threads as there are processors.
    fn for_each_head(
        &self,
        judge: impl Fn(usize) -> Result<Worst, String> + Sync,
    ) -> Result<Worst, String> {
        let (mirror, plan) = (&self.mirror, self.plan);
        let (heads, kv_heads) = (mirror.heads(), plan.problem.n_kv_heads);
        let named = |at: usize| {
            judge(at).map_err(|reason| {
                let valid = mirror.valid(at);
                let content = plan.contents[at].describe();
                let (b, h) = (at / kv_heads, at % kv_heads);
                format!("[{b}, {h}] with positions {valid:?} ({content}): {reason}")
            })
        };
        let threads = available_parallelism().map_or(1, NonZero::get).min(heads);
        let all: Vec<Result<Worst, String>> = std::thread::scope(|scope| {
            let named = &named;
            let parts: Vec<_> = (0..threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let own = (thread..heads).step_by(threads);
                        own.map(|at| (at, named(at))).collect::<Vec<_>>()
                    })
                })
                .collect();
            let mut all: Vec<_> = parts
                .into_iter()
                .flat_map(|part| part.join().expect("judging must not panic"))
                .collect();
            all.sort_by_key(|part| part.0);
            all.into_iter().map(|part| part.1).collect()
        });
        all.into_iter()
            .try_fold(Worst::default(), |worst, one| Ok(worst.and(one?)))
    }

    /// Compares the buffers with the appended content.
    fn check_contents(&self) -> Result<(), String> {
        let tensors = self.cache.tensors();
        let len = self.mirror.len();
        let latest = |rows: &RowTensors| floats(rows.at(0..len));
        let (k, v) = (latest(&tensors.k)?, latest(&tensors.v)?);
        let kt = match &tensors.sketch {
            SketchTensors::Full(kt) => {
                Some(floats(kt.clone().slice_dim(3, 0..len).swap_dims(2, 3))?)
            }
            _ => None,
        };
        let sums = floats(tensors.v_sum.clone())?;
        let d = self.plan.problem.head_dim;
        let size = len * d;
        let (plan, mirror) = (self.plan, &self.mirror);
        self.for_each_head(|at| {
            let valid = mirror.valid(at);
            let span = valid.start * d..valid.end * d;
            let compare = |name: &str, found: &[f32], expected: &[f32]| {
                let found = part(found, at, size);
                let differs = |&i: &usize| {
                    let (found, expected) = (found[i], expected[i]);
                    found != expected && !(found.is_nan() && expected.is_nan())
                };
                match span.clone().find(differs) {
                    None => Ok(()),
                    Some(i) => Err(format!(
                        "{name} in the cache at position {}, component {}: expected {:e}, found {:e}",
                        i / d,
                        i % d,
                        expected[i],
                        found[i]
                    )),
                }
            };
            compare("K", &k, mirror.keys(at))?;
            compare("V", &v, mirror.values(at))?;
            if let Some(kt) = &kt {
                compare("the sketch", kt, mirror.keys(at))?;
            }
            let input = mirror.input(at, &[], &plan.config);
            verdict::sums(&input, part(&sums, at, d))?;
            Ok(Worst::default())
        })?;
        let found: Array<i64> = read("spans", tensors.spans.clone())?;
        let spans = &mirror.spans;
        let counters = vec![0; spans.batch()];
        let expected = spans.start.iter().chain(&spans.end).chain(&counters);
        let expected: Vec<i64> = expected.map(|&x| x as i64).collect();
        match found.values() {
            found if found == expected => Ok(()),
            found => Err(format!(
                "spans on the device: expected {expected:?}, found {found:?}"
            )),
        }
    }

    /// Reads back codes and ranges.
    fn sketch(&self) -> Result<Option<DeviceCodes>, String> {
        let SketchTensors::Codes {
            bits,
            codes,
            zero_point,
            scale,
        } = self.cache.tensors().sketch.clone()
        else {
            return Ok(None);
        };
        let codes = sketch::unpack(codes, bits).slice_dim(3, 0..self.mirror.len());
        let codes = read::<4, Int, i64>("codes", codes)?;
        Ok(Some(DeviceCodes {
            codes: codes.values().iter().map(|&code| code as u8).collect(),
            zero_points: floats(zero_point)?,
            scales: floats(scale)?,
        }))
    }

    fn round(&self, values: &mut [f32], dtype: FloatDType) -> Result<(), String> {
        let precision = Precision::of(dtype).ok_or("expected F32, F16 or BF16")?;
        values.iter_mut().for_each(|x| *x = (precision.round)(*x));
        Ok(())
    }
}

/// Returns the batch head of the same sequence after number `at`; the first after the last.
fn neighbour(at: usize, kv_heads: usize) -> usize {
    at - at % kv_heads + (at % kv_heads + 1) % kv_heads
}

/// Checks the scale of a row in codes, and that the row is near the appended one.
fn check_row(appended: &[f32], stored: &[f32], scale: f32) -> Result<(), String> {
    if appended.iter().any(|x| !x.is_finite()) {
        return match stored.iter().all(|x| x.is_nan()) {
            true => Ok(()),
            false => Err("expected NaN, of a row that is not finite".into()),
        };
    }
    let largest = appended
        .iter()
        .fold(0f32, |largest, x| largest.max(x.abs()));
    let expected = largest / 127.0;
    // A device may round a quotient to a neighbour of the nearest number, and treat subnormal
    // numbers as 0.
    if (scale - expected).abs() > 4.0 * f32::EPSILON * expected + f32::MIN_POSITIVE {
        return Err(format!("expected the scale {expected:e}, found {scale:e}"));
    }
    let most = 0.501 * scale + 255.0 * f32::MIN_POSITIVE;
    let far = std::iter::zip(appended, stored).find(|(x, stored)| (*x - *stored).abs() > most);
    match far {
        None => Ok(()),
        Some((x, stored)) => Err(format!("expected {x:e} within {most:e}, found {stored:e}")),
    }
}

/// Checks the ranges and codes of a batch head against its keys.
fn check_codes(
    plan: &Plan,
    mirror: &Mirror,
    at: usize,
    codes: Codes<'_>,
    zero_points: &[f32],
) -> Result<(), String> {
    let levels = mirror.levels.unwrap_or_default();
    if mirror.valid(at).is_empty() {
        return Ok(());
    }
    for (c, &(zero_point, scale)) in mirror.ranges(at).iter().enumerate() {
        let found = (zero_points[c], codes.scales[c]);
        // A device may round a quotient to a neighbour of the nearest number, and treat subnormal
        // numbers as 0.
        let close = (found.1 - scale).abs() <= 4.0 * f32::EPSILON * scale + f32::MIN_POSITIVE;
        if (found.0 - zero_point).abs() > f32::MIN_POSITIVE || !close {
            let expected = (zero_point, scale);
            return Err(format!(
                "range of channel {c}: expected zero point and scale {expected:?}, found {found:?}"
            ));
        }
    }
    let ranges = zero_points.iter().copied();
    let ranges: Vec<(f32, f32)> = ranges.zip(codes.scales.iter().copied()).collect();
    let input = mirror.input(at, &[], &plan.config);
    let distance = input.distance(codes.codes, &ranges, levels);
    match distance <= 1e-3 {
        true => Ok(()),
        false => Err(format!(
            "codes: expected distances of at most 0.5 from the key, found 0.5 + {distance:.1e}"
        )),
    }
}

/// Reads the selected positions as marks, [B, H_kv, S] for S = `len`. -1 is an unused entry.
pub(super) fn positions(
    found: Tensor<3, Int>,
    problem: &Problem,
    len: usize,
    top_k: usize,
) -> Result<Vec<u8>, String> {
    let seq = Problem {
        seq: len,
        ..*problem
    };
    marks(&seq, top_k, found).map(|marks| marks.values().to_vec())
}

/// Returns the `each` elements of batch head `at`.
pub(super) fn part(values: &[f32], at: usize, each: usize) -> &[f32] {
    &values[at * each..][..each]
}

/// Codes and ranges of a key sketch, read back.
struct DeviceCodes {
    /// [B, H_kv, d, S].
    codes: Vec<u8>,
    /// [B, H_kv, d].
    zero_points: Vec<f32>,
    /// [B, H_kv, d].
    scales: Vec<f32>,
}

impl DeviceCodes {
    /// Returns the codes of batch head `at` and their zero points.
    fn head(&self, at: usize, d: usize, len: usize) -> (Codes<'_>, &[f32]) {
        let codes = Codes {
            codes: &self.codes[at * d * len..][..d * len],
            scales: &self.scales[at * d..][..d],
        };
        (codes, &self.zero_points[at * d..][..d])
    }
}

pub(super) fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    let tensor = tensor.cast(FloatDType::F32);
    read::<D, Float, f32>("a tensor", tensor).map(|array| array.values().to_vec())
}
