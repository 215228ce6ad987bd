//! What a random case consists of.

use burn::tensor::FloatDType;
use sparq::methods::{Components, GroupScore, MeanValue};
use sparq::{Sketch, SparqConfig};

use super::Size;
use super::draws::Draws;
use super::layout::Layout;
use super::rows::Source;
use crate::Problem;

/// A random case: a cache that is filled in steps, and decode steps in between.
pub(super) struct Plan {
    /// The sizes in the end.
    pub(super) problem: Problem,
    /// The settings of SparQ.
    pub(super) config: SparqConfig,
    /// Positions that the cache has room for at first.
    pub(super) capacity: usize,
    /// The left padding of each sequence.
    pub(super) padding: Vec<usize>,
    /// What is done, in this order.
    pub(super) steps: Vec<Step>,
    /// What each sequence and key/value head is like.
    pub(super) sources: Vec<Source>,
    /// The type of the cache.
    pub(super) dtype: FloatDType,
    /// The type of keys and values when they are appended.
    pub(super) input: FloatDType,
    /// The type of the query.
    pub(super) query: FloatDType,
}

/// Something that is done with a cache.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Keys and values are appended, `counts[b]` of them to sequence b; with `shared`, while a clone of the cache is alive.
    Append {
        counts: Vec<usize>,
        layout: Layout,
        shared: bool,
    },
    /// Every sequence is rolled back to this many positions.
    Truncate(usize),
    /// A decode step, dense and sparse.
    Decode { layout: Layout },
}

const TILES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

impl Plan {
    /// The plan of a seed. `dtype` is the type of the cache where one is asked for, and `known` says which types the device has; where it
    /// lacks the one that was drawn, the case is in fp32.
    pub(super) fn draw(
        draws: &mut Draws,
        size: Size,
        dtype: Option<FloatDType>,
        known: impl Fn(FloatDType) -> bool,
    ) -> Self {
        let drawn = draws.pick(&[FloatDType::F32, FloatDType::F16, FloatDType::BF16]);
        let drawn = if known(drawn) { drawn } else { FloatDType::F32 };
        let dtype = dtype.unwrap_or(drawn);
        let mixed = draws.once_in(4);
        let (input, query) = match mixed {
            true => (FloatDType::F32, FloatDType::F32),
            false => (dtype, dtype),
        };

        let (longest, most_kept, elements) = match size {
            Size::Small => (330, 64, 60_000),
            Size::Medium => (6000, 4096, 1_500_000),
            // Huge ones are not drawn here.
            Size::Large | Size::Huge => (1 << 20, 4096, 1 << 27),
        };
        let head_dim = match draws.once_in(10) && size != Size::Large {
            true => draws.pick(&[4, 8, 20, 36, 48, 112, 160]),
            false => draws.pick(&[32, 64, 80, 96, 128, 256]),
        };
        let top_k = draws.doubling(1, most_kept);
        let seq = match size {
            Size::Large => {
                let doubled = 1usize << draws.within(17, 20);
                (doubled + draws.below(3) - 1).min(1 << 20)
            }
            _ => sequence(draws, top_k, longest.min(elements / head_dim)),
        };
        let mut batch = draws.within(1, 4);
        let mut kv_heads = draws.pick(&[1, 1, 2, 3, 4, 5, 8]);
        let mut group = draws.pick(&[1, 1, 2, 3, 4, 5, 7, 8]);
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
        let rank = draws
            .pick(&[1, 2, 3, head_dim / 4, half, head_dim - 1, head_dim])
            .clamp(1, head_dim);
        let rank = match draws.once_in(2) {
            true => draws.within(1, head_dim),
            false => rank,
        };
        let some = draws.within(0, top_k);
        let config = SparqConfig {
            rank,
            top_k,
            local_window: draws.pick(&[0, 1, top_k / 4, top_k / 4, top_k - 1, top_k, some]),
            sketch: draws.pick(&[Sketch::Full, Sketch::Bits8, Sketch::Bits4, Sketch::Bits4]),
            mean_value: draws.pick(&[MeanValue::Always, MeanValue::Never, MeanValue::Paper]),
            group_score: draws.pick(&[GroupScore::Probabilities, GroupScore::Logits]),
            components: draws.pick(&[Components::SumAbs, Components::AbsSum]),
        };
        let padded = draws.once_in(4);
        let padding = (0..batch).map(|_| match padded {
            true => edge(draws, seq, top_k),
            false => 0,
        });
        let padding = padding.collect();
        let ragged = batch > 1 && draws.once_in(2);
        let mut lengths: Vec<usize> = (0..batch)
            .map(|_| match ragged {
                true => seq - edge(draws, seq, top_k),
                false => seq,
            })
            .collect();
        let longest_row = draws.below(batch);
        lengths[longest_row] = seq;
        let plain = draws.once_in(3);
        let sources = (0..batch * kv_heads)
            .map(|_| Source::draw(draws, head_dim, plain))
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
            capacity: draws.pick(&[1, seq / 2 + 1, seq, seq + 70]),
            padding,
            sources,
            steps: steps(draws, size, &lengths),
            dtype,
            input,
            query,
        }
    }

    /// The sizes and settings in short.
    pub(super) fn describe(&self) -> String {
        let config = &self.config;
        let name = |dtype: FloatDType| format!("{dtype:?}").to_lowercase();
        let mixed = match self.query == self.dtype {
            true => String::new(),
            false => format!("/{}", name(self.query)),
        };
        format!(
            "{} r{} k{} l{} {:?} {:?} {:?} mean {:?} {}{mixed}",
            self.problem,
            config.rank,
            config.top_k,
            config.local_window,
            config.sketch,
            config.group_score,
            config.components,
            config.mean_value,
            name(self.dtype)
        )
    }
}

/// How long the longest sequence is: around k, around the tiles of kernels, short, or anything.
fn sequence(draws: &mut Draws, top_k: usize, longest: usize) -> usize {
    let tile = draws.pick(&TILES);
    let seq = match draws.below(6) {
        0 => top_k + draws.below(3) - draws.below(2).min(top_k - 1),
        1 | 2 => tile * draws.doubling(1, 8) + draws.below(3) - 1,
        3 => draws.within(1, 16),
        4 => top_k + draws.doubling(1, longest),
        _ => draws.within(1, longest),
    };
    match seq > longest {
        true => draws.within(1, longest),
        false => seq.max(1),
    }
}

/// By how much a sequence is shorter than the longest, or padded: what leaves it none, one or about k positions, or anything.
fn edge(draws: &mut Draws, seq: usize, top_k: usize) -> usize {
    let about_k = (top_k + draws.below(3)).saturating_sub(1);
    match draws.below(6) {
        0 => 0,
        1 => seq,
        2 => seq - 1,
        3 => seq.saturating_sub(about_k),
        _ => draws.within(0, seq),
    }
}

/// A prefill in one or two parts, then some tokens one by one, and decode steps here and there and in the end.
fn steps(draws: &mut Draws, size: Size, lengths: &[usize]) -> Vec<Step> {
    let seq = lengths.iter().copied().max().unwrap_or(0);
    let decode = |draws: &mut Draws| Step::Decode {
        layout: draws.pick(&Layout::ALL),
    };
    let tail = draws.pick(&[0, 1, 2, 5]).min(seq - 1);
    let prefill = seq - tail;
    let mut steps = Vec::new();
    let mut done = vec![0; lengths.len()];
    let mut append = |draws: &mut Draws, steps: &mut Vec<Step>, to: usize| {
        let counts = lengths.iter().zip(&mut done).map(|(&length, done)| {
            let count = length.min(to) - *done;
            *done += count;
            count
        });
        steps.push(Step::Append {
            counts: counts.collect(),
            layout: match size {
                // Moving numbers about on the host takes its time.
                Size::Large => Layout::Plain,
                _ => draws.pick(&Layout::ALL),
            },
            shared: size != Size::Large && draws.once_in(8),
        });
    };
    let parts = draws.within(1, 2);
    for part in 1..=parts {
        append(draws, &mut steps, prefill * part / parts);
        if draws.once_in(3) && size != Size::Large {
            steps.push(decode(draws));
        }
    }
    // What is rolled back comes again as single tokens.
    let mut back = 0;
    if prefill > 1 && draws.once_in(5) {
        back = draws.doubling(1, prefill - 1).min(6);
        if draws.once_in(4) && size != Size::Large {
            // A short rest makes the ranges of a sketch due.
            back = prefill - draws.within(1, prefill / 2);
        }
        steps.push(Step::Truncate(prefill - back));
    }
    if back > 6 {
        let counts = lengths.iter().map(|&length| {
            let length = length.min(prefill);
            length - length.min(prefill - back)
        });
        steps.push(Step::Append {
            counts: counts.collect(),
            layout: draws.pick(&Layout::ALL),
            shared: false,
        });
        back = 0;
    }
    for at in prefill - back..seq {
        let counts = lengths.iter().map(|&length| usize::from(at < length));
        steps.push(Step::Append {
            counts: counts.collect(),
            layout: draws.pick(&Layout::ALL),
            shared: size != Size::Large && draws.once_in(8),
        });
        if draws.once_in(3) && at + 1 < seq && size != Size::Large {
            steps.push(decode(draws));
        }
    }
    steps.push(decode(draws));
    steps
}
