//! SparQ on the CPU backend `flex`, on the slices of its buffers.
//!
//! A decode step reads each needed byte of the cache once, for all query heads of a group: one pass
//! over the selected rows of the key sketch, a top-k selection, and one gather of K rows and V
//! rows. The work is divided among threads by batch head and, if those are few, by ranges of
//! positions. Sums are kept in fp32.
//!
//! | module | content |
//! |---|---|
//! | [`simd`] | vectors on each instruction set |
//! | [`element`] | the element types of a cache |
//! | [`sketch`] | the rows of a key sketch as vectors |
//! | [`query`], [`score`] | stage 1: selected components, approximate scores |
//! | [`topk`] | stage 2: the selected positions |
//! | [`attend`] | stage 3, and dense attention: exact attention over given positions |
//! | [`online_softmax`] | the exponential, and the softmax state that merges |
//! | [`decode`] | decode steps over a whole batch |
//! | [`prefill`] | causal attention of many queries |
//! | [`team`], [`threads`], [`scratch`] | threads, division among them, working memory |
//! | [`rope`], [`append`] | RoPE, and append of few tokens |
//! | [`argmax`] | the most probable tokens |
//! | [`pages`] | large pages for caches |
//! | [`linear`] | linear layers with a norm, an activation and the residual stream |
//!
//! All `unsafe` code is in [`simd`], [`team`] and [`pages`].
//!
//! Buffers that the kernels do not support (f64, mixed types) take the
//! [`reference`](mod@crate::ops::reference).

mod append;
mod argmax;
mod attend;
mod decode;
mod element;
mod linear;
mod online_softmax;
mod pages;
mod prefill;
mod query;
mod rope;
mod score;
mod scratch;
mod simd;
mod sketch;
mod team;
mod threads;
mod topk;

use burn::backend::Flex;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Tensor, TensorData, bf16, f16};

use self::decode::{Output, Problem};
use self::element::{Element, RowElement, Rows};
use self::prefill::Prefill;
use self::simd::Level;
use self::sketch::{Codes4, Codes8, Full, KeySketch};
use crate::SparqConfig;
use crate::ops::fallback;
use crate::ops::primitive::Primitive;
use crate::ops::{
    BlockFormat, CacheBuffers, NormBuffers, PreparedBuffers, ProjectionBuffers, ResidualBuffers,
    RolledBackBuffers, RotaryBuffers, RowBuffers, SketchBuffers, Spans, SparqBackend,
    SparqOutputBuffers,
};

/// Evaluates an expression with a type alias for the cache's element type. Returns `None` for a
/// type that the kernels do not support.
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

/// Evaluates an expression with K and V as [`Rows`](element::Rows). Returns `None` for types that
/// the kernels do not support.
macro_rules! with_rows {
    ($k:expr, $v:expr, |$rows:ident| $value:expr) => {
        match ($k, $v) {
            (RowBuffers::Float(k), RowBuffers::Float(v)) => with_element!(k.dtype(), T => {
                let rows = float_rows::<T>(k).zip(float_rows::<T>(v));
                rows.and_then(|(k, v)| {
                    let $rows = [k, v];
                    $value
                })
            }),
            (
                RowBuffers::Int8 { codes, scale },
                RowBuffers::Int8 {
                    codes: v_codes,
                    scale: v_scale,
                },
            ) => {
                let rows = code_rows(codes, scale).zip(code_rows(v_codes, v_scale));
                rows.and_then(|(k, v)| {
                    let $rows = [k, v];
                    $value
                })
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
        spans: Spans,
        counts: Vec<usize>,
        encode: bool,
    ) -> CacheBuffers<Self> {
        let Some((dtype, of_tokens)) = types(&cache) else {
            return fallback::append(cache, k, v, spans, counts, encode);
        };
        if spans.longest() == 0 {
            with_element!(dtype, T => {
                pages::advise_large::<T>(&mut cache);
                Some(())
            });
        }
        let codes = matches!(cache.k, RowBuffers::Int8 { .. });
        let few = codes || k.layout().shape()[2] <= append::FEW;
        let done = few.then(|| {
            let [k, v] = [&k, &v].map(|tokens| cast(tokens.clone(), of_tokens));
            with_element!(dtype, T => {
                append::append_few::<T>(&mut cache, [&k, &v], &spans, &counts, encode)
            })
        });
        if done.flatten().is_some() {
            set_spans(&mut cache.spans, &spans.grown(&counts));
            return cache;
        }
        fallback::append(cache, k, v, spans, counts, encode)
    }

    fn roll_back(
        mut cache: CacheBuffers<Self>,
        mut sum: FloatTensor<Self>,
        _moves: IntTensor<Self>,
        mark: Spans,
        spans: Spans,
    ) -> RolledBackBuffers<Self> {
        let of_cache = &mut cache.v_sum;
        let added = with_rows!(&cache.k, &cache.v, |rows| {
            let [_, values] = rows;
            append::add_kept([&mut sum, of_cache], values, &mark, &spans)
        });
        if added.is_none() {
            return fallback::roll_back(cache, sum, mark, spans);
        }
        set_spans(&mut cache.spans, &spans);
        RolledBackBuffers { cache, sum }
    }

    fn prepare(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotary: RotaryBuffers<Self>,
        cache: CacheBuffers<Self>,
        spans: Spans,
        encode: bool,
    ) -> PreparedBuffers<Self> {
        let (q, k) = match rotary {
            RotaryBuffers::None => (q, k),
            RotaryBuffers::Table(table) => {
                let table = cast(table, DType::F32);
                let rotate = |x| rotate(x, &table, &spans);
                (rotate(q), rotate(k))
            }
        };
        let counts = spans.each(k.layout().shape()[2]);
        let cache = Self::append(cache, k, v, spans, counts, encode);
        PreparedBuffers { q, cache }
    }

    fn causal_attention(
        q: FloatTensor<Self>,
        k: RowBuffers<Self>,
        v: RowBuffers<Self>,
        _device_spans: IntTensor<Self>,
        spans: Spans,
        window: Option<usize>,
        softcap: Option<f64>,
    ) -> FloatTensor<Self> {
        let [k, v] =
            [k, v].map(|rows| rows.map(|float| float.to_contiguous(), |int| int.to_contiguous()));
        let found = match q.dtype() {
            DType::F64 => None,
            _ => with_rows!(&k, &v, |rows| {
                causal(Level::detect(), &q, rows, &spans, window, softcap)
            }),
        };
        match found {
            Some(output) => like(&q, output),
            None => fallback::causal_attention::<Self>(q, k, v, spans, window, softcap),
        }
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        let cache = contiguous(cache);
        let found = dense(Level::detect(), &q, &cache, &spans);
        match found {
            Some(output) => like(&q, output),
            None => fallback::dense_decode(q, cache, spans),
        }
    }

    fn sparq_decode(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        spans: Spans,
        config: SparqConfig,
        trace: bool,
    ) -> SparqOutputBuffers<Self> {
        let cache = contiguous(cache);
        let found = sparq(Level::detect(), &q, &cache, &spans, &config, trace);
        let (batch, heads) = (q.layout().shape()[0], q.layout().shape()[1]);
        match found {
            Some(found) => {
                let kv_heads = cache.v_sum.layout().shape()[1];
                let kept = found.positions.len() / (batch * kv_heads).max(1);
                let device = Self::float::<4>(q.clone()).device();
                let positions = TensorData::new(found.positions, [batch, kv_heads, kept]);
                let alpha = TensorData::new(found.alpha, [batch, heads]);
                SparqOutputBuffers {
                    output: like(&q, found.output),
                    positions: Self::int_primitive(Tensor::<3, Int>::from_data(positions, &device)),
                    alpha: FloatTensor::<Self>::from_data(alpha),
                }
            }
            None => fallback::sparq_decode(q, cache, spans, config),
        }
    }

    fn attend_positions(
        q: FloatTensor<Self>,
        cache: CacheBuffers<Self>,
        positions: IntTensor<Self>,
        heads: IntTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        let cache = contiguous(cache);
        let found = over_positions(Level::detect(), &q, &cache, [&positions, &heads], &spans);
        match found {
            Some(output) => like(&q, output),
            None => fallback::attend_positions(q, cache, positions, heads, spans),
        }
    }

    fn decode_linear(
        x: FloatTensor<Self>,
        norm: NormBuffers<Self>,
        projections: ProjectionBuffers<Self>,
        residual: ResidualBuffers<Self>,
    ) -> FloatTensor<Self> {
        let level = Level::detect();
        with_element!(x.dtype(), T => {
            linear::buffers::decode_linear::<T>(level, &x, &norm, &projections, &residual)
        })
        .unwrap_or_else(|| fallback::decode_linear(x, norm, projections, residual))
    }

    fn normalize(x: FloatTensor<Self>, norm: NormBuffers<Self>) -> FloatTensor<Self> {
        let level = Level::detect();
        with_element!(x.dtype(), T => linear::buffers::normalize::<T>(level, &x, &norm))
            .unwrap_or_else(|| fallback::normalize(x, norm))
    }

    fn widen(x: FloatTensor<Self>) -> FloatTensor<Self> {
        cast(x, DType::F32)
    }

    fn argmax(x: FloatTensor<Self>, dtype: IntDType) -> IntTensor<Self> {
        let [rows, width] = x.layout().shape().dims::<2>();
        let Some(values) = f32::slice(&x) else {
            return fallback::argmax::<Self>(x, dtype);
        };
        let found: Vec<_> = values.chunks_exact(width).map(argmax::argmax).collect();
        let indices = found.iter().map(|&(index, _)| index as i64);
        let valid = found.iter().map(|&(_, valid)| i64::from(valid));
        let data = TensorData::new(indices.chain(valid).collect::<Vec<_>>(), [2, rows]);
        let options = (&Device::flex(), DType::from(dtype));
        Self::int_primitive(Tensor::<2, Int>::from_data(data, options))
    }

    fn dequantize_blocks(
        blocks: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let (rows, device) = (0..dims[0], Device::flex());
        fallback::floats::<Self>(blocks.bytes(), rows, format, dims[1], dtype, &device)
    }

    fn dequantize_rows(
        blocks: IntTensor<Self>,
        indices: IntTensor<Self>,
        format: BlockFormat,
        dims: [usize; 2],
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let (rows, device) = (fallback::row_indices::<Self>(indices), Device::flex());
        fallback::floats::<Self>(blocks.bytes(), rows, format, dims[1], dtype, &device)
    }
}

/// Rotates x [B, H, T, d] for the positions after `spans`, in its own type.
fn rotate(x: FloatTensor<Flex>, table: &FloatTensor<Flex>, spans: &Spans) -> FloatTensor<Flex> {
    let (dtype, width) = (x.dtype(), table.layout().shape()[1]);
    let rotated = |x: &FloatTensor<Flex>| {
        let table = (f32::slice(table)?, width);
        let level = Level::detect();
        with_element!(x.dtype(), T => rope::rotate::<T>(level, x, table, spans))
    };
    let x = cast(x, dtype);
    rotated(&x).unwrap_or_else(|| {
        // Other types rotate in fp32.
        let x = cast(x, DType::F32);
        let x = rotated(&x).expect("cast returns contiguous fp32 tensors");
        cast(x, dtype)
    })
}

/// Writes the spans of a cache [3, B], in place where that is possible.
fn set_spans(tensor: &mut IntTensor<Flex>, spans: &Spans) {
    if !append::set_spans(tensor, spans) {
        *tensor = Flex::int_primitive(spans.to_tensor(&Device::flex()));
    }
}

/// Returns the type of a cache and that of tokens to append, or `None` if K and V differ in type.
fn types(cache: &CacheBuffers<Flex>) -> Option<(DType, DType)> {
    match (&cache.k, &cache.v) {
        (RowBuffers::Float(k), RowBuffers::Float(v)) if k.dtype() == v.dtype() => {
            Some((k.dtype(), k.dtype()))
        }
        (RowBuffers::Int8 { .. }, RowBuffers::Int8 { .. }) => match &cache.sketch {
            SketchBuffers::Full(kt) => Some((kt.dtype(), DType::F32)),
            _ => Some((DType::F32, DType::F32)),
        },
        _ => None,
    }
}

/// Returns rows in floats if they are contiguous and of this type.
fn float_rows<T: Element>(rows: &FloatTensor<Flex>) -> Option<Rows<'_, T>> {
    let [_, kv_heads, capacity, dim] = rows.layout().shape().dims::<4>();
    Some(Rows {
        elements: T::slice(rows)?,
        scales: &[],
        kv_heads,
        capacity,
        dim,
    })
}

/// Returns rows in codes if they are contiguous.
fn code_rows<'a>(codes: &'a IntTensor<Flex>, scale: &'a FloatTensor<Flex>) -> Option<Rows<'a, u8>> {
    let (start, end) = codes.layout().contiguous_offsets()?;
    // The first code of a word is its lowest byte.
    let bytes = codes.dtype() == DType::U32 && cfg!(target_endian = "little");
    let [_, kv_heads, capacity, words] = codes.layout().shape().dims::<4>();
    Some(Rows {
        elements: bytes.then(|| &codes.bytes()[4 * start..4 * end])?,
        scales: f32::slice(scale)?,
        kv_heads,
        capacity,
        dim: 4 * words,
    })
}

/// Returns causal attention, [B, H, T, d], or `None` if the kernels do not support the buffers.
fn causal<T: RowElement>(
    level: Level,
    q: &FloatTensor<Flex>,
    [keys, values]: [Rows<'_, T>; 2],
    spans: &Spans,
    window: Option<usize>,
    softcap: Option<f64>,
) -> Option<Vec<f32>> {
    let [_, heads, len, dim] = q.layout().shape().dims::<4>();
    let q = cast(q.clone(), DType::F32);
    let prefill = Prefill {
        level,
        q: f32::slice(&q)?,
        keys,
        values,
        spans,
        window,
        kv_heads: keys.kv_heads,
        group: heads / keys.kv_heads,
        len,
        capacity: keys.capacity,
        dim,
        softcap: softcap.map(|bound| bound as f32),
    };
    Some(prefill.attend())
}

/// Returns dense attention, [B, H, d], or `None` if the kernels do not support the buffers.
fn dense(
    level: Level,
    q: &FloatTensor<Flex>,
    cache: &CacheBuffers<Flex>,
    spans: &Spans,
) -> Option<Vec<f32>> {
    let q = cast(q.clone(), DType::F32);
    with_rows!(&cache.k, &cache.v, |rows| {
        Some(problem(level, &q, rows, cache, spans)?.dense())
    })
}

/// Returns exact attention over given positions, [B, H, d], or `None` if the kernels do not support
/// the buffers.
fn over_positions(
    level: Level,
    q: &FloatTensor<Flex>,
    cache: &CacheBuffers<Flex>,
    [positions, heads]: [&IntTensor<Flex>; 2],
    spans: &Spans,
) -> Option<Vec<f32>> {
    let q = cast(q.clone(), DType::F32);
    let [_, of, k] = positions.layout().shape().dims::<3>();
    let (lists, heads) = (indices(positions), indices(heads));
    with_rows!(&cache.k, &cache.v, |rows| {
        problem(level, &q, rows, cache, spans)?.over_positions(&lists, [of, k], &heads)
    })
}

/// Returns the numbers of a tensor. Those outside of u32, such as the -1 that fills up a list of
/// positions, become its largest value.
fn indices(tensor: &IntTensor<Flex>) -> Vec<u32> {
    let numbers = Flex::int::<1>(
        tensor
            .clone()
            .reshape([tensor.layout().num_elements()].into()),
    );
    let numbers = numbers.into_data();
    let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
    numbers.iter::<i64>().map(number).collect()
}

/// Runs a SparQ step. Returns `None` if the kernels do not support the buffers.
fn sparq(
    level: Level,
    q: &FloatTensor<Flex>,
    cache: &CacheBuffers<Flex>,
    spans: &Spans,
    config: &SparqConfig,
    traced: bool,
) -> Option<Output> {
    let q = cast(q.clone(), DType::F32);
    with_rows!(&cache.k, &cache.v, |rows| {
        let problem = problem(level, &q, rows, cache, spans)?;
        select(&problem, cache, spans, config, traced)
    })
}

/// Runs a SparQ step on the sketch of a cache.
fn select<T: RowElement>(
    problem: &Problem<'_, T>,
    cache: &CacheBuffers<Flex>,
    spans: &Spans,
    config: &SparqConfig,
    traced: bool,
) -> Option<Output> {
    let k = config.top_k.min(spans.longest());
    let v_sum = f32::slice(&cache.v_sum)?;
    match &cache.sketch {
        SketchBuffers::None => None,
        SketchBuffers::Full(kt) => with_element!(kt.dtype(), C => {
            let sketch = KeySketch::<Full<C>>::new(C::slice(kt)?, None, v_sum);
            Some(problem.sparq(&sketch, config, k, traced))
        }),
        SketchBuffers::Codes {
            bits, codes, scale, ..
        } => {
            let (cells, scales) = (codes.as_slice()?, Some(f32::slice(scale)?));
            let (eight, four) = (
                KeySketch::<Codes8>::new(cells, scales, v_sum),
                KeySketch::<Codes4>::new(cells, scales, v_sum),
            );
            match bits {
                8 => Some(problem.sparq(&eight, config, k, traced)),
                4 => Some(problem.sparq(&four, config, k, traced)),
                _ => None,
            }
        }
    }
}

/// Returns a step on these rows; `None` if the query is not contiguous.
fn problem<'a, T: RowElement>(
    level: Level,
    q: &'a FloatTensor<Flex>,
    [keys, values]: [Rows<'a, T>; 2],
    cache: &CacheBuffers<Flex>,
    spans: &'a Spans,
) -> Option<Problem<'a, T>> {
    let [_, heads, _, dim] = q.layout().shape().dims::<4>();
    Some(Problem {
        level,
        q: f32::slice(q)?,
        keys,
        values,
        spans,
        kv_heads: keys.kv_heads,
        group: heads / keys.kv_heads,
        capacity: keys.capacity,
        dim,
        softcap: cache.softcap.map(|bound| bound as f32),
    })
}

/// Converts a tensor to a type and makes it contiguous, perhaps as a part of its storage.
fn cast(tensor: FloatTensor<Flex>, dtype: DType) -> FloatTensor<Flex> {
    let tensor = match tensor.layout().contiguous_offsets() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    };
    let converted = match (tensor.dtype(), dtype) {
        (from, to) if from == to => return tensor,
        (from, DType::F32) => with_element!(from, T => converted::<T, f32>(&tensor)),
        (DType::F32, to) => with_element!(to, T => converted::<f32, T>(&tensor)),
        _ => None,
    };
    converted.unwrap_or_else(|| {
        let tensor = Flex::float::<4>(tensor).cast(FloatDType::from(dtype));
        Flex::float_primitive(tensor).to_contiguous()
    })
}

/// Converts a contiguous tensor with vectors.
fn converted<A: Element, B: Element + burn::tensor::Element>(
    tensor: &FloatTensor<Flex>,
) -> Option<FloatTensor<Flex>> {
    let values: Vec<B> = element::convert(Level::detect(), A::slice(tensor)?);
    let values = TensorData::new(values, tensor.layout().shape().clone());
    Some(FloatTensor::<Flex>::from_data(values))
}

/// Returns the output [B, H, d] as [B, H, 1, d] in the query's type.
fn like(q: &FloatTensor<Flex>, output: Vec<f32>) -> FloatTensor<Flex> {
    let output = TensorData::new(output, q.layout().shape().clone());
    cast(FloatTensor::<Flex>::from_data(output), q.dtype())
}

/// Returns the buffers contiguous. A cache creates them contiguous, so this moves handles, and only
/// copies buffers that were replaced from outside.
fn contiguous(cache: CacheBuffers<Flex>) -> CacheBuffers<Flex> {
    cache.map(|float| float.to_contiguous(), |int| int.to_contiguous())
}

#[cfg(test)]
mod tests;
