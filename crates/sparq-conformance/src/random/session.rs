//! Playing a plan on a device, with a judgement at every decode step.

use std::num::NonZero;
use std::thread::available_parallelism;

use burn::tensor::{Device, Float, FloatDType, Int, Tensor};
use sparq::ops::{SketchTensors, sketch};
use sparq::{KvCache, KvCacheConfig, Method};

use super::draws::Draws;
use super::layout::Layout;
use super::mirror::Mirror;
use super::plan::{Plan, Step};
use super::verdict::{self, Found, Worst};
use crate::Problem;
use crate::host::row::Codes;
use crate::judge::Precision;
use crate::observe::{marks, read};

/// A cache on a device and what it ought to hold.
struct Session<'p> {
    plan: &'p Plan,
    device: Device,
    cache: KvCache,
    mirror: Mirror,
}

/// Plays all steps.
///
/// # Errors
/// What was wrong first, and at which step.
pub(super) fn play(plan: &Plan, draws: &mut Draws, device: &Device) -> Result<Worst, String> {
    let problem = &plan.problem;
    let config = KvCacheConfig::new(problem.batch, problem.n_kv_heads, problem.head_dim)
        .with_capacity(plan.capacity)
        .with_dtype(plan.dtype)
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
    for (at, step) in plan.steps.iter().enumerate() {
        let done = session.step(step, draws);
        worst = worst.and(done.map_err(|reason| {
            let (number, all) = (at + 1, plan.steps.len());
            let len = session.mirror.len();
            format!("step {number} of {all}, S = {len}: {reason}")
        })?);
    }
    session.check_contents()?;
    Ok(worst)
}

impl Session<'_> {
    fn step(&mut self, step: &Step, draws: &mut Draws) -> Result<Worst, String> {
        match step {
            Step::Append {
                counts,
                layout,
                shared,
            } => {
                let before = shared.then(|| (self.cache.clone(), self.mirror.clone()));
                self.append(draws, counts, *layout)?;
                let Some((cache, mirror)) = before else {
                    return Ok(Worst::default());
                };
                // The clone must still hold what it held, and this one what was appended.
                let now = (
                    std::mem::replace(&mut self.cache, cache),
                    std::mem::replace(&mut self.mirror, mirror),
                );
                let decoded = match self.mirror.len() {
                    0 => Ok(Worst::default()),
                    _ => self.decode(draws, Layout::Plain),
                };
                (self.cache, self.mirror) = now;
                decoded.map_err(|reason| format!("in the clone from before the append: {reason}"))
            }
            Step::Truncate(len) => {
                self.cache.truncate(*len);
                self.mirror.truncate(*len);
                Ok(Worst::default())
            }
            // A prefill in two parts may begin with nothing.
            Step::Decode { .. } if self.mirror.len() == 0 => Ok(Worst::default()),
            Step::Decode { layout } => self.decode(draws, *layout),
        }
    }

    fn append(
        &mut self,
        draws: &mut Draws,
        counts: &[usize],
        layout: Layout,
    ) -> Result<(), String> {
        let problem = &self.plan.problem;
        let (heads, d) = (problem.n_kv_heads, problem.head_dim);
        let len = counts.iter().copied().max().unwrap_or(0);
        if len == 0 {
            return Ok(());
        }
        let shape = [problem.batch, heads, len, d];
        let size = shape.iter().product();
        let (mut k, mut v) = (vec![0f32; size], vec![0f32; size]);
        let rows = k.chunks_exact_mut(len * d);
        let rows = rows.zip(v.chunks_exact_mut(len * d));
        for ((row, (keys, values)), source) in rows.enumerate().zip(&self.plan.sources) {
            let first = self.mirror.rows.end[row / heads];
            let parts = keys.chunks_exact_mut(d).zip(values.chunks_exact_mut(d));
            for (t, (key, value)) in parts.enumerate() {
                source.key(draws, first + t, self.plan.dtype, key);
                source.value(draws, first + t, self.plan.dtype, value);
            }
        }
        let tensors = [&mut k, &mut v].map(|values| {
            layout.settle(values, shape);
            layout.tensor(values, shape, self.plan.input, &self.device)
        });
        let [keys, values] = tensors;
        let appended = self.cache.append_ragged(keys, values, counts);
        appended.map_err(|error| error.to_string())?;
        self.round(&mut k, self.plan.dtype)?;
        self.round(&mut v, self.plan.dtype)?;
        self.mirror.append(&k, &v, len, counts);
        Ok(())
    }

    /// A decode step, dense and sparse, and its judgement.
    fn decode(&mut self, draws: &mut Draws, layout: Layout) -> Result<Worst, String> {
        let (problem, config) = (&self.plan.problem, &self.plan.config);
        let shape = problem.query();
        let group = problem.group_size();
        let mut q = vec![0f32; shape.iter().product()];
        let queries = q.chunks_exact_mut(group * problem.head_dim);
        for (queries, source) in queries.zip(&self.plan.sources) {
            source.query(draws, queries);
        }
        layout.settle(&mut q, shape);
        let query = layout.tensor(&q, shape, self.plan.query, &self.device);
        self.round(&mut q, self.plan.query)?;

        let error = |error: sparq::SparqError| error.to_string();
        let step = config
            .decode_traced(query.clone(), &mut self.cache)
            .map_err(error)?;
        self.mirror.refresh(config);
        let dense = Method::DENSE.decode(query.clone(), &mut self.cache);
        let dense = floats(dense.map_err(error)?)?;
        let method = match self.mirror.len() <= config.top_k {
            true => {
                // Where everything is kept, the method answers with dense attention.
                let all = Method::from(*config).decode(query, &mut self.cache);
                Some(floats(all.map_err(error)?)?)
            }
            false => None,
        };
        let (output, alpha) = (floats(step.output)?, floats(step.alpha)?);
        let selected = positions(step.positions, problem, self.mirror.len(), config.top_k)?;
        let sketch = self.sketch()?;

        let (plan, mirror, len) = (self.plan, &self.mirror, self.mirror.len());
        let each = group * problem.head_dim;
        self.every_row(|at| {
            let row = mirror.row(at, part(&q, at, each), config);
            let codes = match &sketch {
                None => None,
                Some(sketch) => {
                    let (codes, lo) = sketch.row(at, problem.head_dim, len);
                    check_codes(plan, mirror, at, codes, lo)?;
                    Some(codes)
                }
            };
            let found = Found {
                selected: &selected[at * len..][..len],
                alpha: part(&alpha, at, group),
                output: part(&output, at, each),
                dtype: plan.query,
            };
            let worst = verdict::sparse(&row, codes, &found)?;
            if let Some(method) = &method {
                verdict::dense(&row, part(method, at, each), plan.query)?;
            }
            let dense = verdict::dense(&row, part(&dense, at, each), plan.query)?;
            Ok(worst.and(dense))
        })
    }

    /// Judges all rows, on all processors where that is worth it.
    fn every_row(
        &self,
        judge: impl Fn(usize) -> Result<Worst, String> + Sync,
    ) -> Result<Worst, String> {
        let (mirror, plan) = (&self.mirror, self.plan);
        let (heads, kv_heads) = (mirror.heads(), plan.problem.n_kv_heads);
        let named = |at: usize| {
            judge(at).map_err(|reason| {
                let valid = mirror.valid(at);
                let source = plan.sources[at].describe();
                let (b, h) = (at / kv_heads, at % kv_heads);
                format!("[{b}, {h}] with positions {valid:?} ({source}): {reason}")
            })
        };
        let threads = available_parallelism().map_or(1, NonZero::get).min(heads);
        let all: Vec<Result<Worst, String>> = std::thread::scope(|scope| {
            let named = &named;
            let parts: Vec<_> = (0..threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let rows = (thread..heads).step_by(threads);
                        rows.map(|at| (at, named(at))).collect::<Vec<_>>()
                    })
                })
                .collect();
            let mut all: Vec<_> = parts
                .into_iter()
                .flat_map(|part| part.join().expect("a judgement does not panic"))
                .collect();
            all.sort_by_key(|part| part.0);
            all.into_iter().map(|part| part.1).collect()
        });
        all.into_iter()
            .try_fold(Worst::default(), |worst, one| Ok(worst.and(one?)))
    }

    /// Holds the buffers to what was appended.
    fn check_contents(&self) -> Result<(), String> {
        let tensors = self.cache.tensors();
        let len = self.mirror.len();
        let latest = |t: &Tensor<4>| floats(t.clone().slice_dim(2, 0..len));
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
        self.every_row(|at| {
            let valid = mirror.valid(at);
            let span = valid.start * d..valid.end * d;
            let compare = |what: &str, found: &[f32], expected: &[f32]| {
                let found = part(found, at, size);
                let differs = |&i: &usize| {
                    let (found, expected) = (found[i], expected[i]);
                    found != expected && !(found.is_nan() && expected.is_nan())
                };
                match span.clone().find(differs) {
                    None => Ok(()),
                    Some(i) => Err(format!(
                        "{what} in the cache at position {}, component {}: expected {:e}, found {:e}",
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
            let row = mirror.row(at, &[], &plan.config);
            verdict::sums(&row, part(&sums, at, d))?;
            Ok(Worst::default())
        })?;
        let spans = tensors.spans.clone();
        let spans = read::<2, Int, i64>("spans", spans)?;
        let rows = &self.mirror.rows;
        let expected: Vec<i64> = rows
            .start
            .iter()
            .chain(&rows.end)
            .map(|&x| x as i64)
            .collect();
        let expected = [expected, vec![0; rows.batch()]].concat();
        match spans.values() == expected {
            true => Ok(()),
            false => Err(format!(
                "spans on the device: expected {expected:?}, found {:?}",
                spans.values()
            )),
        }
    }

    /// The codes and ranges as the device has them.
    fn sketch(&self) -> Result<Option<DeviceCodes>, String> {
        let SketchTensors::Codes {
            bits,
            codes,
            zero_point: lo,
            scale: step,
        } = self.cache.tensors().sketch.clone()
        else {
            return Ok(None);
        };
        let codes = sketch::unpack(codes, bits).slice_dim(3, 0..self.mirror.len());
        let codes = read::<4, Int, i64>("codes", codes)?;
        Ok(Some(DeviceCodes {
            codes: codes.values().iter().map(|&code| code as u8).collect(),
            lo: floats(lo)?,
            step: floats(step)?,
        }))
    }

    fn round(&self, values: &mut [f32], dtype: FloatDType) -> Result<(), String> {
        let precision = Precision::of(dtype).ok_or("expected F32, F16 or BF16")?;
        values.iter_mut().for_each(|x| *x = (precision.round)(*x));
        Ok(())
    }
}

/// Holds the ranges and codes of a row to its keys.
fn check_codes(
    plan: &Plan,
    mirror: &Mirror,
    at: usize,
    codes: Codes<'_>,
    lo: &[f32],
) -> Result<(), String> {
    let levels = mirror.levels.unwrap_or_default();
    if mirror.valid(at).is_empty() {
        return Ok(());
    }
    for (c, &(low, step)) in mirror.ranges(at).iter().enumerate() {
        let found = (lo[c], codes.step[c]);
        // A device may round a quotient to the number next to the nearest one, and take what is subnormal as 0.
        let close = (found.1 - step).abs() <= 4.0 * f32::EPSILON * step + f32::MIN_POSITIVE;
        if (found.0 - low).abs() > f32::MIN_POSITIVE || !close {
            let expected = (low, step);
            return Err(format!(
                "range of channel {c}: expected lo and step of {expected:?}, found {found:?}"
            ));
        }
    }
    let ranges: Vec<(f32, f32)> = lo.iter().copied().zip(codes.step.iter().copied()).collect();
    let row = mirror.row(at, &[], &plan.config);
    let distance = row.distance(codes.codes, &ranges, levels);
    match distance <= 1e-3 {
        true => Ok(()),
        false => Err(format!(
            "codes: one is {distance:.1e} further from its key than half"
        )),
    }
}

/// The kept positions as marks, [B, H_kv, S] for `len` positions; -1 stands for a place that is not used.
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

/// The `each` elements of row `at`.
pub(super) fn part(values: &[f32], at: usize, each: usize) -> &[f32] {
    &values[at * each..][..each]
}

/// A key sketch in bits, read back.
struct DeviceCodes {
    /// [B, H_kv, d, S].
    codes: Vec<u8>,
    /// [B, H_kv, d].
    lo: Vec<f32>,
    /// [B, H_kv, d].
    step: Vec<f32>,
}

impl DeviceCodes {
    /// The codes of row `at` and the lower ends of their ranges.
    fn row(&self, at: usize, d: usize, len: usize) -> (Codes<'_>, &[f32]) {
        let codes = Codes {
            codes: &self.codes[at * d * len..][..d * len],
            step: &self.step[at * d..][..d],
        };
        (codes, &self.lo[at * d..][..d])
    }
}

pub(super) fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    let tensor = tensor.cast(FloatDType::F32);
    read::<D, Float, f32>("a tensor", tensor).map(|array| array.values().to_vec())
}
