//! What the queries, keys and values of a row are like: ordinary numbers, and those at which kernels break.

use burn::tensor::FloatDType;

use super::draws::Draws;

/// The keys of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// Normal, with a scale for each channel.
    Normal,
    /// Every key the same.
    Equal,
    /// Small whole numbers: many scores are equal.
    Integers,
    /// One key with a thousandth of noise: scores differ in their low bits.
    Close,
    /// Signs and exponents at random.
    Wide,
    /// Numbers below the smallest normal one of the cache's type.
    Subnormal,
    /// Normal, with NaN in some.
    NotNumbers,
    /// Normal, with infinities of both signs in some.
    Infinities,
    /// Normal, with a huge one here and there.
    Huge,
    /// Along one direction, growing with the position.
    Ascending,
    /// Along one direction, falling with the position.
    Descending,
    /// Zeros.
    Zero,
    /// Seven keys in turn.
    Repeated,
}

/// The values of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// Normal.
    Normal,
    /// Every value the same.
    Equal,
    /// Normal, with NaN and infinities in some.
    Special,
    /// Normal, with a huge one here and there.
    Huge,
    /// Numbers below the smallest normal one of the cache's type.
    Subnormal,
}

/// The queries of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queries {
    /// Normal, with a few large channels.
    Normal,
    /// Zeros.
    Zero,
    /// 1 and -1: every component is as large as any other.
    Signs,
    /// A thousand times as large as usual, so that one position has all the weight.
    Sharp,
    /// Below the smallest normal number of fp32.
    Subnormal,
    /// A single component.
    One,
    /// The first head is zero.
    FirstZero,
}

/// One sequence and key/value head: what its numbers are like, from the first position to the last.
#[derive(Clone)]
pub(super) struct Source {
    keys: Keys,
    values: Values,
    queries: Queries,
    /// d numbers that the kinds use in their own ways.
    direction: Vec<f32>,
    seven: Vec<f32>,
}

/// The edges of a type's range.
struct Edges {
    huge: f32,
    subnormal: f32,
    exponent: usize,
}

impl Edges {
    fn of(dtype: FloatDType) -> Self {
        match dtype {
            FloatDType::F16 => Self {
                huge: 6e4,
                subnormal: 1e-5,
                exponent: 12,
            },
            // Far enough from the largest number that no sum of products overflows in one order of terms and not in another.
            _ => Self {
                huge: 1e28,
                subnormal: 1e-39,
                exponent: 30,
            },
        }
    }
}

impl Source {
    /// Every third row has something unusual; in `plain` cases none.
    pub(super) fn draw(draws: &mut Draws, head_dim: usize, plain: bool) -> Self {
        let unusual = |draws: &mut Draws, times| !plain && draws.once_in(times);
        let keys = match unusual(draws, 2) {
            false => Keys::Normal,
            true => draws.pick(&[
                Keys::Equal,
                Keys::Integers,
                Keys::Close,
                Keys::Wide,
                Keys::Subnormal,
                Keys::NotNumbers,
                Keys::Infinities,
                Keys::Huge,
                Keys::Ascending,
                Keys::Descending,
                Keys::Zero,
                Keys::Repeated,
            ]),
        };
        let values = match unusual(draws, 4) {
            false => Values::Normal,
            true => draws.pick(&[
                Values::Equal,
                Values::Special,
                Values::Huge,
                Values::Subnormal,
            ]),
        };
        let queries = match unusual(draws, 4) {
            false => Queries::Normal,
            true => draws.pick(&[
                Queries::Zero,
                Queries::Signs,
                Queries::Sharp,
                Queries::Subnormal,
                Queries::One,
                Queries::FirstZero,
            ]),
        };
        Self {
            keys,
            values,
            queries,
            direction: (0..head_dim).map(|_| draws.normal()).collect(),
            seven: (0..7 * head_dim).map(|_| draws.normal()).collect(),
        }
    }

    /// In words, for a failure.
    pub(super) fn describe(&self) -> String {
        format!(
            "queries {:?}, keys {:?}, values {:?}",
            self.queries, self.keys, self.values
        )
    }

    /// The key at a position.
    pub(super) fn key(&self, draws: &mut Draws, at: usize, dtype: FloatDType, key: &mut [f32]) {
        let edges = Edges::of(dtype);
        let unusual = draws.below(key.len());
        let odd = draws.once_in(12) || at == 3;
        let sign = draws.sign();
        for (c, x) in key.iter_mut().enumerate() {
            let noise = draws.normal();
            let direction = self.direction[c];
            let normal = noise * (0.5 + direction.abs());
            *x = match self.keys {
                Keys::Normal => normal,
                Keys::Equal => direction,
                Keys::Integers => noise.round(),
                Keys::Close => direction + 1e-3 * noise,
                Keys::Wide => {
                    let exponent = draws.below(2 * edges.exponent + 1) as i32;
                    noise.signum() * 2f32.powi(exponent - edges.exponent as i32)
                }
                Keys::Subnormal => noise * edges.subnormal,
                Keys::NotNumbers if odd && c == unusual => f32::NAN,
                Keys::Infinities if odd && c == unusual => sign * f32::INFINITY,
                Keys::Huge if odd => sign * direction.signum() * edges.huge,
                Keys::NotNumbers | Keys::Infinities | Keys::Huge => normal,
                Keys::Ascending => direction * (at + 1) as f32 / 64.0,
                Keys::Descending => direction * -(at as f32) / 64.0,
                Keys::Zero => 0.0,
                Keys::Repeated => self.seven[(at % 7) * self.direction.len() + c],
            };
        }
    }

    /// The value at a position.
    pub(super) fn value(&self, draws: &mut Draws, at: usize, dtype: FloatDType, value: &mut [f32]) {
        let edges = Edges::of(dtype);
        let unusual = draws.below(value.len());
        let odd = draws.once_in(24) || at == 2;
        let special = draws.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        for (c, x) in value.iter_mut().enumerate() {
            let normal = draws.normal() + 0.5 * self.direction[c];
            *x = match self.values {
                Values::Equal => self.direction[c],
                Values::Special if odd && c == unusual => special,
                Values::Huge if odd => normal.signum() * edges.huge,
                Values::Subnormal => normal * edges.subnormal,
                Values::Normal | Values::Special | Values::Huge => normal,
            };
        }
    }

    /// The queries of the group, g rows of d.
    pub(super) fn query(&self, draws: &mut Draws, queries: &mut [f32]) {
        let head_dim = self.direction.len();
        let one = draws.below(head_dim);
        for (h, q) in queries.chunks_exact_mut(head_dim).enumerate() {
            for (c, x) in q.iter_mut().enumerate() {
                let outlier = if self.direction[c] > 1.5 { 4.0 } else { 1.0 };
                let normal = outlier * (draws.normal() + 0.5 * self.direction[c]);
                *x = match self.queries {
                    Queries::Zero => 0.0,
                    Queries::Signs => normal.signum(),
                    Queries::Sharp => 1e3 * normal,
                    Queries::Subnormal => 1e-39 * normal,
                    Queries::One if c != one => 0.0,
                    Queries::FirstZero if h == 0 => 0.0,
                    Queries::Normal | Queries::One | Queries::FirstZero => normal,
                };
            }
        }
    }
}
