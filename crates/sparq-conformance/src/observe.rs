//! Runs a reference case on a device and reads back every result.

use burn::tensor::kind::Basic;
use burn::tensor::{DType, Device, Element, FloatDType, Int, Tensor, TensorData};
use sparq::ops::{SketchTensors, sketch};
use sparq::{KvCache, KvCacheConfig, Method, reference};

use crate::case::ExpectedSketch;
use crate::float64::Selections;
use crate::{Array, Case, Problem};

/// The results of the reference, with all intermediate ones, and those of the operation.
pub(crate) struct Observed {
    /// Of the reference: components, codes, and positions as marks.
    pub(crate) selections: Selections,
    /// Of the reference: approximate logits, [B, H_kv, g, S].
    pub(crate) logits: Array<f32>,
    /// Of the reference: the mean of V, [B, H_kv, d].
    pub(crate) mean_value: Array<f32>,
    /// Of the cache: the codes of the key sketch.
    pub(crate) sketch: Option<ExpectedSketch>,
    /// Of the operation: 1 at selected positions, [B, H_kv, S].
    pub(crate) selected: Array<u8>,
    /// Of the operation: alpha, [B, H].
    pub(crate) alpha: Array<f32>,
    /// Attention outputs [B, H, 1, d]: of the operation, and of the method if it runs dense
    /// attention.
    pub(crate) outputs: Vec<Array<f32>>,
}

/// Runs a case on a device, with queries, keys and values in `dtype`. Errors are those of the
/// device or the library, or describe malformed results.
pub(crate) fn observe(case: &Case, device: &Device, dtype: FloatDType) -> Result<Observed, String> {
    let problem = &case.problem;
    let mut cache = fill(case, device, dtype).map_err(|error| error.to_string())?;
    let q = tensor::<4>(&case.inputs.q, device).cast(dtype);
    let step = case
        .config
        .decode_traced(q.clone(), &mut cache)
        .map_err(|error| error.to_string())?;
    let mut outputs = vec![floats("output", step.output)?];
    if problem.seq <= case.config.top_k {
        // If all positions are selected, the method may run dense attention with the same result.
        let dense = Method::from(case.config)
            .decode(q.clone(), &mut cache)
            .map_err(|error| error.to_string())?;
        outputs.push(floats("output", dense)?);
    }
    let sketch = coded(case, &cache)?;
    let host = reference_device(device);
    let tensors = cache.tensors().clone().to_device(&host);
    let trace = reference::sparq_decode(q.to_device(&host), &tensors, cache.spans(), &case.config);
    Ok(Observed {
        selections: Selections {
            components: components(case, trace.components)?,
            selected: marks(problem, case.config.top_k, trace.positions)?,
            codes: sketch.as_ref().map(|sketch| sketch.codes.clone()),
        },
        logits: floats("score", trace.logits)?,
        mean_value: floats("mean value", trace.mean_value)?,
        sketch,
        selected: marks(problem, case.config.top_k, step.positions)?,
        alpha: floats("alpha", step.alpha)?,
        outputs,
    })
}

/// Returns the device on which the reference runs for a cache on `device`: a CPU, since matrix
/// products on a GPU may round fp32 operands to fewer bits.
#[allow(
    deprecated,
    reason = "burn deprecates ndarray, which here serves as a second implementation beside flex"
)]
fn reference_device(device: &Device) -> Device {
    let cpus = [
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
    ];
    match cpus.first() {
        Some(cpu) if !cpus.contains(device) => cpu.clone(),
        _ => device.clone(),
    }
}

/// Returns a cache that holds the keys and values of the case.
fn fill(case: &Case, device: &Device, dtype: FloatDType) -> Result<KvCache, sparq::SparqError> {
    let problem = &case.problem;
    let mut cache = KvCacheConfig::new(problem.batch, problem.n_kv_heads, problem.head_dim)
        .with_capacity(problem.seq)
        .with_dtype(dtype)
        .with_sketch(Some(case.config.sketch))
        .init(device)?;
    cache.set_left_padding(&case.left_padding)?;
    let (k, v) = (&case.inputs.k, &case.inputs.v);
    cache.append(tensor::<4>(k, device), tensor::<4>(v, device))?;
    Ok(cache)
}

/// Reads the codes of the key sketch, one per byte, with scales and zero points.
fn coded(case: &Case, cache: &KvCache) -> Result<Option<ExpectedSketch>, String> {
    let SketchTensors::Codes {
        bits,
        codes,
        zero_point,
        scale,
    } = cache.tensors().sketch.clone()
    else {
        return Ok(None);
    };
    let codes = sketch::unpack(codes, bits).slice_dim(3, 0..case.problem.seq);
    let codes: Array<i64> = read("codes", codes)?;
    if let Some(code) = codes.values().iter().find(|&&code| code >> bits != 0) {
        return Err(format!("codes: expected {bits} bits, found {code}"));
    }
    Ok(Some(ExpectedSketch {
        codes: codes.map(|&code| code as u8),
        zero_point: floats("zero point", zero_point)?,
        scale: floats("scale", scale)?,
    }))
}

/// Reads the selected components, ascending.
fn components(case: &Case, found: Tensor<3, Int>) -> Result<Array<i64>, String> {
    let problem = &case.problem;
    let found: Array<i64> = read("components", found)?;
    check_shape("components", &found, &problem.per_kv_head(case.config.rank))?;
    let mut all = Vec::with_capacity(found.values().len());
    for row in found.rows() {
        let mut row = row.to_vec();
        row.sort_unstable();
        let twice = row.windows(2).find(|pair| pair[0] == pair[1]);
        if let Some(pair) = twice {
            return Err(format!("components: {} is selected twice", pair[0]));
        }
        let within = |&&c: &&i64| !usize::try_from(c).is_ok_and(|c| c < problem.head_dim);
        if let Some(c) = row.iter().find(within) {
            let end = problem.head_dim;
            return Err(format!("components: expected 0 to below {end}, found {c}"));
        }
        all.extend(row);
    }
    Array::new(found.shape().to_vec(), all).ok_or_else(|| "components: incomplete".into())
}

/// Reads the selected positions as marks over all positions. -1 is an unused entry.
pub(crate) fn marks(
    problem: &Problem,
    top_k: usize,
    found: Tensor<3, Int>,
) -> Result<Array<u8>, String> {
    let found: Array<i64> = read("positions", found)?;
    let count = top_k.min(problem.seq);
    check_shape("positions", &found, &problem.per_kv_head(count))?;
    let mut marks = vec![0; problem.batch * problem.n_kv_heads * problem.seq];
    for (row, positions) in marks.chunks_exact_mut(problem.seq).zip(found.rows()) {
        for &position in positions.iter().filter(|&&position| position != -1) {
            let at = usize::try_from(position).ok();
            match at.and_then(|at| row.get_mut(at)) {
                Some(mark) if *mark == 0 => *mark = 1,
                Some(_) => return Err(format!("positions: {position} is selected twice")),
                None => {
                    let range = format!("-1 to below {}", problem.seq);
                    return Err(format!("positions: expected {range}, found {position}"));
                }
            }
        }
    }
    let shape = problem.per_kv_head(problem.seq).to_vec();
    Array::new(shape, marks).ok_or_else(|| "positions: incomplete".into())
}

fn check_shape<T>(name: &str, found: &Array<T>, expected: &[usize]) -> Result<(), String> {
    match found.shape() {
        shape if shape == expected => Ok(()),
        shape => Err(format!(
            "{name}: expected shape {expected:?}, found {shape:?}"
        )),
    }
}

fn tensor<const D: usize>(array: &Array<f32>, device: &Device) -> Tensor<D> {
    let data = TensorData::new(array.values().to_vec(), array.shape().to_vec());
    Tensor::from_data(data, (device, DType::F32))
}

fn floats<const D: usize>(name: &str, tensor: Tensor<D>) -> Result<Array<f32>, String> {
    read(name, tensor)
}

/// Reads a tensor back. Here a device also reports earlier errors.
pub(crate) fn read<const D: usize, K: Basic, E: Element>(
    name: &str,
    tensor: Tensor<D, K>,
) -> Result<Array<E>, String> {
    let shape = tensor.dims().to_vec();
    let values = tensor.try_into_vec_as::<E>();
    let values = values.map_err(|error| format!("{name}: {error}"))?;
    Array::new(shape, values)
        .ok_or_else(|| format!("{name}: the device returned another number of elements"))
}
