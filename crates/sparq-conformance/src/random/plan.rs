//! The plan of a random case.

use burn::tensor::FloatDType;
use sparq::methods::{Anchors, Components, GroupScore, Magnitude, MeanValue};
use sparq::{RowFormat, Sketch, SparqConfig};

use super::Size;
use super::content::Content;
use super::layout::Layout;
use super::rng::Rng;
use crate::Problem;

/// A random case: operations on a cache, with decode steps in between.
pub(super) struct Plan {
    /// The sizes after the last operation.
    pub(super) problem: Problem,
    /// The settings of SparQ.
    pub(super) config: SparqConfig,
    /// The initial capacity of the cache.
    pub(super) capacity: usize,
    /// The left padding of each sequence.
    pub(super) padding: Vec<usize>,
    /// The operations, in order.
    pub(super) operations: Vec<Operation>,
    /// The content of each batch head.
    pub(super) contents: Vec<Content>,
    /// The type of the cache.
    pub(super) dtype: FloatDType,
    /// The type of appended keys and values.
    pub(super) input: FloatDType,
    /// The type of the query.
    pub(super) query: FloatDType,
}

/// An operation on a cache.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    /// Appends `counts[b]` keys and values to sequence b. If `shared`, a clone of the cache is
    /// alive.
    Append {
        counts: Vec<usize>,
        layout: Layout,
        shared: bool,
    },
    /// Truncates every sequence to this length.
    Truncate(usize),
    /// Runs a decode step of dense attention and one of SparQ.
    Decode { layout: Layout },
}

const TILES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

impl Plan {
    /// Draws a plan. `dtype` is the requested type of the cache. `known` returns whether the device
    /// supports a type: a drawn type that it does not support becomes fp32.
    pub(super) fn draw(
        rng: &mut Rng,
        size: Size,
        dtype: Option<FloatDType>,
        known: impl Fn(FloatDType) -> bool,
    ) -> Self {
        let drawn = rng.pick(&[FloatDType::F32, FloatDType::F16, FloatDType::BF16]);
        let drawn = if known(drawn) { drawn } else { FloatDType::F32 };
        let dtype = dtype.unwrap_or(drawn);
        let mixed = rng.once_in(4);
        let (input, query) = match mixed {
            true => (FloatDType::F32, FloatDType::F32),
            false => (dtype, dtype),
        };

        let (longest, most_selected, elements) = match size {
            Size::Small => (330, 64, 60_000),
            Size::Medium => (6000, 4096, 1_500_000),
            // Huge cases are drawn elsewhere.
            Size::Large | Size::Huge => (1 << 20, 4096, 1 << 27),
        };
        let head_dim = match rng.once_in(10) && size != Size::Large {
            true => rng.pick(&[4, 8, 20, 36, 48, 112, 160]),
            false => rng.pick(&[32, 64, 80, 96, 128, 256]),
        };
        let top_k = rng.doubling(1, most_selected);
        let seq = match size {
            Size::Large => {
                let doubled = 1usize << rng.within(17, 20);
                (doubled + rng.below(3) - 1).min(1 << 20)
            }
            _ => sequence(rng, top_k, longest.min(elements / head_dim)),
        };
        let mut batch = rng.within(1, 4);
        let mut kv_heads = rng.pick(&[1, 1, 2, 3, 4, 5, 8]);
        let mut group = rng.pick(&[1, 1, 2, 3, 4, 5, 7, 8]);
        while batch * kv_heads * seq * head_dim > elements {
            if batch >= kv_heads && batch > 1 {
                batch -= 1;
            } else if kv_heads > 1 {
                kv_heads -= 1;
            } else {
                break;
            }
        }
        if size == Size::Small {
            group = group.min(4);
        }
        if size == Size::Large {
            (batch, kv_heads) = (1, kv_heads.min(2));
        }
        let half = head_dim / 2;
        let rank = rng
            .pick(&[1, 2, 3, head_dim / 4, half, head_dim - 1, head_dim])
            .clamp(1, head_dim);
        let rank = match rng.once_in(2) {
            true => rng.within(1, head_dim),
            false => rank,
        };
        let some = rng.within(0, top_k);
        let config = SparqConfig {
            rank,
            top_k,
            local_window: rng.pick(&[0, 1, top_k / 4, top_k / 4, top_k - 1, top_k, some]),
            sketch: rng.pick(&[Sketch::Full, Sketch::Bits8, Sketch::Bits4, Sketch::Bits4]),
            mean_value: rng.pick(&[MeanValue::Always, MeanValue::Never, MeanValue::Paper]),
            group_score: rng.pick(&[GroupScore::Probabilities, GroupScore::Logits]),
            components: rng.pick(&[Components::SumAbs, Components::AbsSum]),
            magnitude: rng.pick(&[Magnitude::Query, Magnitude::Contribution]),
            rows: RowFormat::Float,
            anchors: Anchors::All,
        };
        // A full sketch of 16 bits would round the rounded keys again.
        let once = config.sketch != Sketch::Full || dtype == FloatDType::F32;
        let rows = match size != Size::Large && once && rng.once_in(3) {
            true => RowFormat::Int8,
            false => RowFormat::Float,
        };
        let config = config.with_rows(rows);
        let padded = rng.once_in(4);
        let padding = (0..batch).map(|_| match padded {
            true => edge(rng, seq, top_k),
            false => 0,
        });
        let padding = padding.collect();
        let ragged = batch > 1 && rng.once_in(2);
        let mut lengths: Vec<usize> = (0..batch)
            .map(|_| match ragged {
                true => seq - edge(rng, seq, top_k),
                false => seq,
            })
            .collect();
        let longest_sequence = rng.below(batch);
        lengths[longest_sequence] = seq;
        let plain = rng.once_in(3);
        let contents = (0..batch * kv_heads)
            .map(|_| Content::draw(rng, head_dim, plain))
            .collect();
        Self {
            problem: Problem {
                batch,
                n_heads: kv_heads * group,
                n_kv_heads: kv_heads,
                head_dim,
                seq,
            },
            config,
            capacity: rng.pick(&[1, seq / 2 + 1, seq, seq + 70]),
            padding,
            contents,
            operations: operations(rng, size, &lengths),
            dtype,
            input,
            query,
        }
    }

    /// Returns sizes and settings in short.
    pub(super) fn describe(&self) -> String {
        let config = &self.config;
        let name = |dtype: FloatDType| format!("{dtype:?}").to_lowercase();
        let mixed = match self.query == self.dtype {
            true => String::new(),
            false => format!("/{}", name(self.query)),
        };
        let rows = match config.rows {
            RowFormat::Float => String::new(),
            rows => format!(" rows {rows}"),
        };
        format!(
            "{} r{} k{} l{} {:?} {:?} {:?} {:?} mean {:?} {}{mixed}{rows}",
            self.problem,
            config.rank,
            config.top_k,
            config.local_window,
            config.sketch,
            config.group_score,
            config.components,
            config.magnitude,
            config.mean_value,
            name(self.dtype)
        )
    }
}

/// Draws the length of the longest sequence: near k, near multiples of kernel tiles, short, or any.
fn sequence(rng: &mut Rng, top_k: usize, longest: usize) -> usize {
    let tile = rng.pick(&TILES);
    let seq = match rng.below(6) {
        0 => top_k + rng.below(3) - rng.below(2).min(top_k - 1),
        1 | 2 => tile * rng.doubling(1, 8) + rng.below(3) - 1,
        3 => rng.within(1, 16),
        4 => top_k + rng.doubling(1, longest),
        _ => rng.within(1, longest),
    };
    match seq > longest {
        true => rng.within(1, longest),
        false => seq.max(1),
    }
}

/// Draws how much shorter than the longest a sequence is, or how much padding it has. Leaves it
/// with none, one, about k, or any number of positions.
fn edge(rng: &mut Rng, seq: usize, top_k: usize) -> usize {
    let about_k = (top_k + rng.below(3)).saturating_sub(1);
    match rng.below(6) {
        0 => 0,
        1 => seq,
        2 => seq - 1,
        3 => seq.saturating_sub(about_k),
        _ => rng.within(0, seq),
    }
}

/// Draws a prefill in one or two parts, single tokens, and decode steps in between and at the end.
fn operations(rng: &mut Rng, size: Size, lengths: &[usize]) -> Vec<Operation> {
    let seq = lengths.iter().copied().max().unwrap_or(0);
    let decode = |rng: &mut Rng| Operation::Decode {
        layout: rng.pick(&Layout::ALL),
    };
    let tail = rng.pick(&[0, 1, 2, 5]).min(seq - 1);
    let prefill = seq - tail;
    let mut operations = Vec::new();
    let mut done = vec![0; lengths.len()];
    let mut append = |rng: &mut Rng, operations: &mut Vec<Operation>, to: usize| {
        let counts = lengths.iter().zip(&mut done).map(|(&length, done)| {
            let count = length.min(to) - *done;
            *done += count;
            count
        });
        operations.push(Operation::Append {
            counts: counts.collect(),
            layout: match size {
                // Permuting this many numbers on the host is slow.
                Size::Large => Layout::Plain,
                _ => rng.pick(&Layout::ALL),
            },
            shared: size != Size::Large && rng.once_in(8),
        });
    };
    let parts = rng.within(1, 2);
    for part in 1..=parts {
        append(rng, &mut operations, prefill * part / parts);
        if rng.once_in(3) && size != Size::Large {
            operations.push(decode(rng));
        }
    }
    // Truncated positions are appended again as single tokens.
    let mut back = 0;
    if prefill > 1 && rng.once_in(5) {
        back = rng.doubling(1, prefill - 1).min(6);
        if rng.once_in(4) && size != Size::Large {
            // Truncation below half of the length makes the sketch ranges due.
            back = prefill - rng.within(1, prefill / 2);
        }
        operations.push(Operation::Truncate(prefill - back));
    }
    if back > 6 {
        let counts = lengths.iter().map(|&length| {
            let length = length.min(prefill);
            length - length.min(prefill - back)
        });
        operations.push(Operation::Append {
            counts: counts.collect(),
            layout: rng.pick(&Layout::ALL),
            shared: false,
        });
        back = 0;
    }
    for at in prefill - back..seq {
        let counts = lengths.iter().map(|&length| usize::from(at < length));
        operations.push(Operation::Append {
            counts: counts.collect(),
            layout: rng.pick(&Layout::ALL),
            shared: size != Size::Large && rng.once_in(8),
        });
        if rng.once_in(3) && at + 1 < seq && size != Size::Large {
            operations.push(decode(rng));
        }
    }
    operations.push(decode(rng));
    operations
}
