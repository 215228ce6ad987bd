//! The operations on the CPU backend `flex`, on its buffers as slices.
//!
//! A decode step is one pass over the rows of the key sketch, a selection and one gather of rows; it reads each byte of the cache that it needs once, for all the query
//! heads of a group. The work is divided among threads by key/value head and, where heads are few, by spans of positions. Sums are kept in fp32.
//!
//! - [`simd`] has the vectors and all `unsafe` code, [`element`] the types of a cache, [`softmax`] the exponential and the mergeable state.
//! - [`score`], [`select`] and [`attend`] are steps 1 to 3, 4 and 6; [`decode`] puts them together.
//! - [`turn`] turns a token's query and key to their position, [`append`] writes its key and value.
//!
//! What they don't cover (f64, buffers of mixed types) runs through the [`reference`](mod@crate::ops::reference).

mod append;
mod attend;
mod decode;
mod element;
mod score;
mod select;
mod simd;
mod softmax;
mod turn;

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, bf16, f16};

use self::decode::{Output, Sketch, Task};
use self::element::Element;
use self::score::{Bytes, Full, Nibbles};
use self::simd::Level;
use crate::SparqConfig;
use crate::ops::Spans;
use crate::ops::fallback;
use crate::ops::primitive::Primitive;
use crate::ops::{
    CacheBuffers, PreparedBuffers, RotaryBuffers, SketchBuffers, SparqBackend, SparqOutputBuffers,
};

/// Evaluates an expression with a type alias for the cache's element type; `None` for a type that the kernels don't know.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $value:expr) => {
        match $dtype {
            DType::F32 => {
                type $element = f32;
                $value
            }
            DType::F16 => {
                type $element = f16;
                $value
            }
            DType::BF16 => {
                type $element = bf16;
                $value
            }
            _ => None,
        }
    };
}

impl SparqBackend for Flex {
    fn append(
        mut cache: CacheBuffers<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rows: Spans,
        counts: Vec<usize>,
        encode: bool,
    ) -> CacheBuffers<Self> {
        let dtype = cache.k.dtype();
        let one = k.layout().shape()[2] == 1;
        let done = one && cache.v.dtype() == dtype && {
            let (k, v) = (cast(k.clone(), dtype), cast(v.clone(), dtype));
            with_element!(dtype, T => T::slice(&k).zip(T::slice(&v)).map(|(k, v)| {
                append::token(&mut cache, k, v, &rows, &counts, encode)
            }))
            .unwrap_or(false)
        };
        if done {
            let device = Self::float::<4>(k).device();
            let spans = rows.grown(&counts).to_tensor(&device);
            cache.spans = Self::int_primitive(spans);
            return cache;
        }
        fallback::append(cache, k, v, rows, counts, encode)
    }

    fn prepare(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotary: RotaryBuffers<Self>,
        cache: CacheBuffers<Self>,
        rows: Spans,
        encode: bool,
    ) -> PreparedBuffers<Self> {
        let (q, k) = match rotary {
            RotaryBuffers::None => (q, k),
            RotaryBuffers::Table(table) => {
                let table = cast(table, DType::F32);
                (turn::token(q, &table, &rows), turn::token(k, &table, &rows))
            }
        };
        let counts = vec![1; rows.batch()];
        let cache = Self::append(cache, k, v, rows, counts, encode);
        PreparedBuffers { q, cache }
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        rows: Spans,
    ) -> FloatTensor<Self> {
        let cache = contiguous(cache);
        let found =
            with_element!(cache.k.dtype(), T => dense::<T>(Level::detect(), &q, &cache, &rows));
        match found {
            Some(output) => like(&q, output),
            None => fallback::dense_decode(q, cache, rows),
        }
    }

    fn sparq_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        rows: Spans,
        config: SparqConfig,
        trace: bool,
    ) -> SparqOutputBuffers<Self> {
        let cache = contiguous(cache);
        let found = with_element!(cache.k.dtype(), T => sparq::<T>(Level::detect(), &q, &cache, &rows, &config, trace));
        let (batch, heads) = (q.layout().shape()[0], q.layout().shape()[1]);
        match found {
            Some(found) => {
                let kv_heads = cache.k.layout().shape()[1];
                let kept = found.positions.len() / (batch * kv_heads).max(1);
                let device = Self::float::<4>(q.clone()).device();
                let positions = TensorData::new(found.positions, [batch, kv_heads, kept]);
                SparqOutputBuffers {
                    output: like(&q, found.output),
                    positions: Self::int_primitive(Tensor::<3, Int>::from_data(positions, &device)),
                    alpha: FloatTensor::<Self>::from_data(TensorData::new(
                        found.alpha,
                        [batch, heads],
                    )),
                }
            }
            None => fallback::sparq_decode(q, cache, rows, config),
        }
    }
}

/// Dense attention, [B, H, d]; `None` where the kernels don't know the buffers.
fn dense<T: Element>(
    level: Level,
    q: &FloatTensor<Flex>,
    cache: &CacheBuffers<Flex>,
    rows: &Spans,
) -> Option<Vec<f32>> {
    let q = cast(q.clone(), DType::F32);
    Some(task::<T>(level, &q, cache, rows)?.dense())
}

/// A SparQ step; `None` where the kernels don't know the buffers.
fn sparq<T: Element>(
    level: Level,
    q: &FloatTensor<Flex>,
    cache: &CacheBuffers<Flex>,
    rows: &Spans,
    config: &SparqConfig,
    traced: bool,
) -> Option<Output> {
    let q = cast(q.clone(), DType::F32);
    let task = task::<T>(level, &q, cache, rows)?;
    let k = config.top_k.min(rows.longest());
    let v_sum = as_slice::<f32>(&cache.v_sum)?;
    match &cache.sketch {
        SketchBuffers::None => None,
        SketchBuffers::Full(kt) => {
            let sketch = Sketch::<Full<T>> {
                cells: as_slice(kt)?,
                steps: None,
                v_sum,
            };
            Some(task.sparq(&sketch, config, k, traced))
        }
        SketchBuffers::Codes {
            bits,
            codes,
            scale: step,
            ..
        } => {
            let (cells, steps) = (codes.as_slice::<u32>()?, Some(as_slice(step)?));
            match bits {
                8 => Some(task.sparq(
                    &Sketch::<Bytes> {
                        cells,
                        steps,
                        v_sum,
                    },
                    config,
                    k,
                    traced,
                )),
                4 => Some(task.sparq(
                    &Sketch::<Nibbles> {
                        cells,
                        steps,
                        v_sum,
                    },
                    config,
                    k,
                    traced,
                )),
                _ => None,
            }
        }
    }
}

/// The buffers as slices.
fn task<'a, T: Element>(
    level: Level,
    q: &'a FloatTensor<Flex>,
    cache: &'a CacheBuffers<Flex>,
    rows: &'a Spans,
) -> Option<Task<'a, T>> {
    let shape = cache.k.layout().shape();
    let (kv_heads, capacity, dim) = (shape[1], shape[2], shape[3]);
    Some(Task {
        level,
        q: as_slice(q)?,
        keys: as_slice(&cache.k)?,
        values: as_slice(&cache.v)?,
        rows,
        kv_heads,
        group: q.layout().shape()[1] / kv_heads,
        capacity,
        dim,
    })
}

/// The elements of a tensor, if they are of this type and lie without a gap.
fn as_slice<T: Element>(tensor: &FloatTensor<Flex>) -> Option<&[T]> {
    T::slice(tensor)
}

/// The tensor in another type, without a gap.
fn cast(tensor: FloatTensor<Flex>, dtype: DType) -> FloatTensor<Flex> {
    if tensor.dtype() == dtype {
        return tensor.to_contiguous();
    }
    let tensor = Flex::float::<4>(tensor).cast(FloatDType::from(dtype));
    Flex::float_primitive(tensor).to_contiguous()
}

/// The output [B, H, d] as [B, H, 1, d] in the query's type.
fn like(q: &FloatTensor<Flex>, output: Vec<f32>) -> FloatTensor<Flex> {
    let output = TensorData::new(output, q.layout().shape().clone());
    cast(FloatTensor::<Flex>::from_data(output), q.dtype())
}

/// The buffers without gaps. [`CacheTensors`](crate::ops::CacheTensors) are made that way: this moves handles, and copies only what somebody else laid out.
fn contiguous(cache: CacheBuffers<Flex>) -> CacheBuffers<Flex> {
    cache.map(
        |buffer| buffer.to_contiguous(),
        |buffer| buffer.to_contiguous(),
    )
}

#[cfg(test)]
mod tests;
