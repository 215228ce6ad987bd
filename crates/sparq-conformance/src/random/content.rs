//! The queries, keys and values of a batch head: ordinary numbers, and numbers likely to break
//! kernels.

use burn::tensor::FloatDType;

use super::rng::Rng;

/// The keys of a batch head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// Normal, with a scale for each channel.
    Normal,
    /// Equal keys.
    Equal,
    /// Small integers: many scores are equal.
    Integers,
    /// One key with a thousandth of noise: scores differ in their low bits.
    Close,
    /// Random signs and exponents.
    Wide,
    /// Subnormal numbers of the cache's type.
    Subnormal,
    /// Normal, with NaN in some.
    NotNumbers,
    /// Normal, with infinities of both signs in some.
    Infinities,
    /// Normal, with a few huge ones.
    Huge,
    /// Multiples of one direction that grow with the position.
    Ascending,
    /// Multiples of one direction that fall with the position.
    Descending,
    /// Zeros.
    Zero,
    /// Seven keys, repeated.
    Repeated,
}

/// The values of a batch head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// Normal.
    Normal,
    /// Equal values.
    Equal,
    /// Normal, with NaN and infinities in some.
    Special,
    /// Normal, with a few huge ones.
    Huge,
    /// Subnormal numbers of the cache's type.
    Subnormal,
}

/// The queries of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queries {
    /// Normal, with a few large channels.
    Normal,
    /// Zeros.
    Zero,
    /// 1 and -1: all components have the same magnitude.
    Signs,
    /// A thousand times larger than normal, so that one position has all the weight.
    Sharp,
    /// Subnormal numbers of fp32.
    Subnormal,
    /// A single nonzero component.
    One,
    /// The first head is zero.
    FirstZero,
}

/// The content of one batch head.
#[derive(Clone)]
pub(super) struct Content {
    keys: Keys,
    values: Values,
    queries: Queries,
    /// A vector that each kind uses differently, [d].
    direction: Vec<f32>,
    /// The keys of [`Keys::Repeated`], [7, d].
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
            // So far from the largest number that whether a sum of products overflows does not
            // depend on the order of its terms.
            _ => Self {
                huge: 1e28,
                subnormal: 1e-39,
                exponent: 30,
            },
        }
    }
}

impl Content {
    /// Draws the content. `plain` content is normal everywhere.
    pub(super) fn draw(rng: &mut Rng, head_dim: usize, plain: bool) -> Self {
        let unusual = |rng: &mut Rng, times| !plain && rng.once_in(times);
        let keys = match unusual(rng, 2) {
            false => Keys::Normal,
            true => rng.pick(&[
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
        let values = match unusual(rng, 4) {
            false => Values::Normal,
            true => rng.pick(&[
                Values::Equal,
                Values::Special,
                Values::Huge,
                Values::Subnormal,
            ]),
        };
        let queries = match unusual(rng, 4) {
            false => Queries::Normal,
            true => rng.pick(&[
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
            direction: (0..head_dim).map(|_| rng.normal()).collect(),
            seven: (0..7 * head_dim).map(|_| rng.normal()).collect(),
        }
    }

    /// Describes the content for error messages.
    pub(super) fn describe(&self) -> String {
        format!(
            "queries {:?}, keys {:?}, values {:?}",
            self.queries, self.keys, self.values
        )
    }

    /// Writes the key at a position.
    pub(super) fn key(&self, rng: &mut Rng, at: usize, dtype: FloatDType, key: &mut [f32]) {
        let edges = Edges::of(dtype);
        let unusual = rng.below(key.len());
        let odd = rng.once_in(12) || at == 3;
        let sign = rng.sign();
        for (c, x) in key.iter_mut().enumerate() {
            let noise = rng.normal();
            let direction = self.direction[c];
            let normal = noise * (0.5 + direction.abs());
            *x = match self.keys {
                Keys::Normal => normal,
                Keys::Equal => direction,
                Keys::Integers => noise.round(),
                Keys::Close => direction + 1e-3 * noise,
                Keys::Wide => {
                    let exponent = rng.below(2 * edges.exponent + 1) as i32;
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

    /// Writes the value at a position.
    pub(super) fn value(&self, rng: &mut Rng, at: usize, dtype: FloatDType, value: &mut [f32]) {
        let edges = Edges::of(dtype);
        let unusual = rng.below(value.len());
        let odd = rng.once_in(24) || at == 2;
        let special = rng.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        for (c, x) in value.iter_mut().enumerate() {
            let normal = rng.normal() + 0.5 * self.direction[c];
            *x = match self.values {
                Values::Equal => self.direction[c],
                Values::Special if odd && c == unusual => special,
                Values::Huge if odd => normal.signum() * edges.huge,
                Values::Subnormal => normal * edges.subnormal,
                Values::Normal | Values::Special | Values::Huge => normal,
            };
        }
    }

    /// Writes the queries of the group, [g, d].
    pub(super) fn query(&self, rng: &mut Rng, queries: &mut [f32]) {
        let head_dim = self.direction.len();
        let one = rng.below(head_dim);
        for (h, q) in queries.chunks_exact_mut(head_dim).enumerate() {
            for (c, x) in q.iter_mut().enumerate() {
                let outlier = if self.direction[c] > 1.5 { 4.0 } else { 1.0 };
                let normal = outlier * (rng.normal() + 0.5 * self.direction[c]);
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
