//! Random numbers from a normal distribution, faster than a disk writes them.
//!
//! A counter determines every number, so that any part of a tensor can be made on any thread. Each
//! 16 random bits select one of 65536 quantiles of the distribution from a table.

use half::{bf16, f16};
use sparq_measure::shape::CacheType;

use super::tensors::Values;

/// The `initializer_range` of the families.
pub const STANDARD_DEVIATION: f64 = 0.02;

/// Numbers that one random word of 64 bits gives.
const LANES: usize = 4;

/// Entries of the table.
const QUANTILES: usize = 1 << 16;

/// The odd number closest to 2^64 divided by the golden ratio: the step of SplitMix64 (Steele et
/// al., "Fast splittable pseudorandom number generators", 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The numbers of one seed in one type.
pub struct Normal {
    table: Table,
    seed: u64,
}

/// The quantiles as bytes.
enum Table {
    Two(Vec<[u8; 2]>),
    Four(Vec<[u8; 4]>),
}

impl Normal {
    /// Makes the table.
    pub fn new(dtype: CacheType, seed: u64) -> Self {
        let values = quantiles().into_iter().map(|value| value as f32);
        let table = match dtype {
            CacheType::F32 => Table::Four(values.map(f32::to_le_bytes).collect()),
            CacheType::F16 => Table::Two(
                values
                    .map(|value| f16::from_f32(value).to_le_bytes())
                    .collect(),
            ),
            CacheType::Bf16 => Table::Two(
                values
                    .map(|value| bf16::from_f32(value).to_le_bytes())
                    .collect(),
            ),
        };
        Self { table, seed }
    }

    /// Fills `out` with the elements of the tensor `name` from element `first` on, which is a
    /// multiple of [`LANES`].
    pub fn fill(&self, name: &str, first: usize, out: &mut [u8]) {
        let key = name
            .bytes()
            .fold(mix(self.seed), |key, byte| mix(key ^ u64::from(byte)));
        let word = (first / LANES) as u64;
        match &self.table {
            Table::Two(table) => fill(key, word, table, out),
            Table::Four(table) => fill(key, word, table, out),
        }
    }
}

/// The bytes of an element with this value.
pub fn constant(dtype: CacheType, value: f32) -> Vec<u8> {
    match dtype {
        CacheType::F32 => value.to_le_bytes().to_vec(),
        CacheType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        CacheType::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

impl Values {
    /// Fills `out` with elements of the tensor `name` from element `first` on.
    pub fn fill(self, dtype: CacheType, normal: &Normal, name: &str, first: usize, out: &mut [u8]) {
        match self {
            Values::Normal => normal.fill(name, first, out),
            Values::Constant(value) => {
                let bytes = constant(dtype, value);
                for element in out.chunks_exact_mut(bytes.len()) {
                    element.copy_from_slice(&bytes);
                }
            }
        }
    }
}

fn fill<const N: usize>(key: u64, first: u64, table: &[[u8; N]], out: &mut [u8]) {
    let mut words = (first..).map(|word| mix(key.wrapping_add(word.wrapping_mul(STEP))));
    let mut groups = out.chunks_exact_mut(LANES * N);
    let mut fill_group = |group: &mut [u8]| {
        let word = words.next().unwrap_or_default();
        for (lane, element) in group.chunks_exact_mut(N).enumerate() {
            element.copy_from_slice(&table[usize::from((word >> (16 * lane)) as u16)]);
        }
    };
    for group in &mut groups {
        fill_group(group);
    }
    fill_group(groups.into_remainder());
}

/// The finaliser of SplitMix64: any two different words give unrelated ones.
pub fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(STEP);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The centres of equally probable parts of the normal distribution, by summing its density.
fn quantiles() -> Vec<f64> {
    const WIDTH: f64 = 1e-4;
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let (mut x, mut below) = (0.0, 0.5);
    let mut upper = Vec::with_capacity(QUANTILES / 2);
    for index in QUANTILES / 2..QUANTILES {
        let wanted = (index as f64 + 0.5) / QUANTILES as f64;
        let area = |x: f64| WIDTH * density(x + WIDTH / 2.0);
        while below + area(x) < wanted {
            below += area(x);
            x += WIDTH;
        }
        let quantile = x + WIDTH * (wanted - below) / area(x);
        upper.push(STANDARD_DEVIATION * quantile);
    }
    let lower = upper.iter().rev().map(|quantile| -quantile);
    lower.chain(upper.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(name: &str, first: usize, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        Normal::new(CacheType::F32, 1).fill(name, first, &mut bytes);
        let element = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        bytes.chunks_exact(4).map(element).collect()
    }

    #[test]
    fn random_numbers_are_normal() {
        let found: Vec<f64> = numbers("a", 0, 1 << 18)
            .into_iter()
            .map(f64::from)
            .collect();
        let count = found.len() as f64;
        let moment = |power: i32| {
            let scaled = found.iter().map(|x| (x / STANDARD_DEVIATION).powi(power));
            scaled.sum::<f64>() / count
        };
        // Standard errors: 0.002, 0.003, 0.008 and 0.02.
        for (power, expected, error) in [
            (1, 0.0, 0.01),
            (2, 1.0, 0.015),
            (3, 0.0, 0.04),
            (4, 3.0, 0.1),
        ] {
            let moment = moment(power);
            assert!((moment - expected).abs() < error, "{power}: {moment}");
        }
        let table = quantiles();
        assert!(table.is_sorted() && table.len() == QUANTILES);
        // The 97.5th percentile of the normal distribution.
        let at = table[(0.975 * QUANTILES as f64) as usize] / STANDARD_DEVIATION;
        assert!((at - 1.959_964).abs() < 1e-3, "{at}");
    }

    #[test]
    fn random_parts_equal_the_whole() {
        let whole = numbers("a", 0, 103);
        assert_eq!(whole[40..], numbers("a", 40, 63));
        assert_ne!(whole, numbers("b", 0, 103));
        let neighbours = whole.windows(2).filter(|pair| pair[0] == pair[1]);
        assert_eq!(neighbours.count(), 0);
    }
}
