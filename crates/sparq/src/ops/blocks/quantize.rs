//! Blocks of given weights.
//!
//! Scales are rounded to f16 before the codes are chosen. Where a format has a scale for each run
//! of a block, a few scales are tried, each is fitted by least squares, and the best is kept.

use burn::tensor::f16;

use super::BlockFormat;

/// See [`BlockFormat::quantize`].
pub(super) fn quantize(format: BlockFormat, weights: &[f32]) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(format.row_bytes(weights.len()));
    for weights in weights.chunks_exact(format.weights()) {
        match format {
            BlockFormat::Q8_0 => q8_0(weights, &mut blocks),
            BlockFormat::Q4_0 => symmetric(weights, 8.0, &mut blocks),
            BlockFormat::Q5_0 => symmetric(weights, 16.0, &mut blocks),
            BlockFormat::Q4_1 => with_minimum(weights, 15.0, &mut blocks),
            BlockFormat::Q5_1 => with_minimum(weights, 31.0, &mut blocks),
            BlockFormat::Q4_K => with_minima(weights, 15.0, &mut blocks),
            BlockFormat::Q5_K => with_minima(weights, 31.0, &mut blocks),
            BlockFormat::Q6_K => q6_k(weights, &mut blocks),
        }
    }
    blocks
}

/// Rounds to f16, writes the bits, and returns the rounded number.
fn push_half(value: f32, blocks: &mut Vec<u8>) -> f32 {
    let half = f16::from_f32(value);
    blocks.extend(half.to_le_bytes());
    half.to_f32()
}

/// Returns the code of a weight, `weight / scale` rounded and kept within `largest`.
fn code(weight: f32, scale: f32, largest: f32) -> f32 {
    match scale == 0.0 {
        true => 0.0,
        false => (weight / scale).round_ties_even().clamp(0.0, largest),
    }
}

/// Returns the weight of the largest magnitude.
fn extreme(weights: &[f32]) -> f32 {
    let larger = |a: f32, &b: &f32| if b.abs() > a.abs() { b } else { a };
    weights.iter().fold(0.0, larger)
}

fn range(weights: &[f32]) -> (f32, f32) {
    let least = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let most = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (least, most)
}

fn q8_0(weights: &[f32], blocks: &mut Vec<u8>) {
    let scale = push_half(extreme(weights).abs() / 127.0, blocks);
    let codes = weights.iter().map(|weight| match scale == 0.0 {
        true => 0,
        false => (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8 as u8,
    });
    blocks.extend(codes);
}

/// Q4_0 and Q5_0: the weight of the largest magnitude gets the code 0, which is `offset` below 0.
fn symmetric(weights: &[f32], offset: f32, blocks: &mut Vec<u8>) {
    let scale = push_half(extreme(weights) / -offset, blocks);
    let codes: Vec<u8> = weights
        .iter()
        .map(|weight| match scale == 0.0 {
            true => offset as u8,
            false => code(weight / scale + offset, 1.0, 2.0 * offset - 1.0) as u8,
        })
        .collect();
    push_codes_of_32(&codes, offset > 8.0, blocks);
}

/// Q4_1 and Q5_1.
fn with_minimum(weights: &[f32], largest: f32, blocks: &mut Vec<u8>) {
    let (least, most) = range(weights);
    let scale = push_half((most - least) / largest, blocks);
    let minimum = push_half(least, blocks);
    let code = |weight: &f32| code(weight - minimum, scale, largest) as u8;
    let codes: Vec<u8> = weights.iter().map(code).collect();
    push_codes_of_32(&codes, largest > 15.0, blocks);
}

/// Writes 32 codes, the fifth bits first if they have them.
fn push_codes_of_32(codes: &[u8], five_bits: bool, blocks: &mut Vec<u8>) {
    if five_bits {
        let bit = |(at, code): (usize, &u8)| u32::from(code >> 4) << at;
        let high: u32 = codes.iter().enumerate().map(bit).sum();
        blocks.extend(high.to_le_bytes());
    }
    let (first, second) = codes.split_at(16);
    let pairs = first.iter().zip(second);
    blocks.extend(pairs.map(|(low, high)| low & 15 | high << 4));
}

/// Q4_K and Q5_K.
fn with_minima(weights: &[f32], largest: f32, blocks: &mut Vec<u8>) {
    let runs: Vec<(f32, f32)> = weights
        .chunks_exact(32)
        .map(|run| fit_with_minimum(run, largest))
        .collect();
    let most = |of: fn(&(f32, f32)) -> f32| runs.iter().map(of).fold(0.0, f32::max);
    let d = push_half(most(|run| run.0) / 63.0, blocks);
    let m = push_half(most(|run| run.1) / 63.0, blocks);
    let scales: Vec<u8> = runs.iter().map(|run| code(run.0, d, 63.0) as u8).collect();
    let minima: Vec<u8> = runs.iter().map(|run| code(run.1, m, 63.0) as u8).collect();
    for run in 0..4 {
        blocks.push(scales[run] | scales[run + 4] >> 4 << 6);
    }
    for run in 0..4 {
        blocks.push(minima[run] | minima[run + 4] >> 4 << 6);
    }
    for run in 4..8 {
        blocks.push(scales[run] & 15 | minima[run] << 4);
    }
    let mut codes = [0; 256];
    for (run, (codes, weights)) in codes.chunks_mut(32).zip(weights.chunks(32)).enumerate() {
        let (scale, minimum) = (d * f32::from(scales[run]), m * f32::from(minima[run]));
        for (to, weight) in codes.iter_mut().zip(weights) {
            *to = code(weight + minimum, scale, largest) as u8;
        }
    }
    if largest > 15.0 {
        for lane in 0..32 {
            let bit = |run: usize| (codes[run * 32 + lane] >> 4) << run;
            blocks.push((0..8).map(bit).sum());
        }
    }
    for codes in codes.chunks_exact(64) {
        let (first, second) = codes.split_at(32);
        let pairs = first.iter().zip(second);
        blocks.extend(pairs.map(|(low, high)| low & 15 | high << 4));
    }
}

/// The ranges that are tried, in codes beyond the largest.
const TRIED: [f32; 6] = [0.0, -1.0, -0.5, 0.3, 0.6, 1.0];

/// Returns a scale and a minimum, not negative, for weights = scale code - minimum.
fn fit_with_minimum(weights: &[f32], largest: f32) -> (f32, f32) {
    let (least, most) = range(weights);
    let least = least.min(0.0);
    if most <= least {
        return (0.0, -least);
    }
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for beyond in TRIED {
        let first = ((most - least) / (largest + beyond), -least);
        for (scale, minimum) in [first, least_squares(weights, first, largest)] {
            let error = |weight: &f32| {
                let code = code(weight + minimum, scale, largest);
                (scale * code - minimum - weight).powi(2)
            };
            let error = weights.iter().map(error).sum();
            if error < best.0 {
                best = (error, scale, minimum);
            }
        }
    }
    (best.1, best.2)
}

/// Returns the best scale and minimum for the codes of others.
fn least_squares(weights: &[f32], (scale, minimum): (f32, f32), largest: f32) -> (f32, f32) {
    let (mut codes, mut squares, mut sum, mut products) = (0.0, 0.0, 0.0, 0.0);
    for weight in weights {
        let code = code(weight + minimum, scale, largest);
        codes += code;
        squares += code * code;
        sum += weight;
        products += weight * code;
    }
    let count = weights.len() as f32;
    let determinant = count * squares - codes * codes;
    if determinant <= 0.0 {
        return (scale, minimum);
    }
    let fitted = (count * products - codes * sum) / determinant;
    let offset = (codes * products - squares * sum) / determinant;
    match fitted > 0.0 && offset >= 0.0 {
        true => (fitted, offset),
        false => (scale, minimum),
    }
}

fn q6_k(weights: &[f32], blocks: &mut Vec<u8>) {
    let runs: Vec<f32> = weights.chunks_exact(16).map(fit_symmetric).collect();
    let d = f16::from_f32(extreme(&runs) / -128.0);
    let scale = |run: &f32| match d == f16::ZERO {
        true => 0.0,
        false => (run / d.to_f32()).round_ties_even().clamp(-128.0, 127.0),
    };
    let scales: Vec<f32> = runs.iter().map(scale).collect();
    let mut codes = [0; 256];
    for (run, (codes, weights)) in codes.chunks_mut(16).zip(weights.chunks(16)).enumerate() {
        let scale = d.to_f32() * scales[run];
        for (to, weight) in codes.iter_mut().zip(weights) {
            *to = match scale == 0.0 {
                true => 32,
                false => code(weight / scale + 32.0, 1.0, 63.0) as u8,
            };
        }
    }
    for codes in codes.chunks_exact(128) {
        let (first, second) = codes.split_at(64);
        let pairs = first.iter().zip(second);
        blocks.extend(pairs.map(|(low, high)| low & 15 | high << 4));
    }
    for codes in codes.chunks_exact(128) {
        for lane in 0..32 {
            let bits = |run: usize| (codes[run * 32 + lane] >> 4) << (2 * run);
            blocks.push((0..4).map(bits).sum());
        }
    }
    blocks.extend(scales.iter().map(|scale| *scale as i8 as u8));
    blocks.extend(d.to_le_bytes());
}

/// Returns a scale for weights = scale (code - 32).
fn fit_symmetric(weights: &[f32]) -> f32 {
    let extreme = extreme(weights);
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = (f32::INFINITY, 0.0);
    for beyond in TRIED {
        let first = extreme / -(32.0 + beyond);
        let code = |weight: f32, scale: f32| {
            let code = (weight / scale).round_ties_even();
            code.clamp(-32.0, 31.0)
        };
        let (mut squares, mut products) = (0.0, 0.0);
        for &weight in weights {
            let code = code(weight, first);
            squares += code * code;
            products += weight * code;
        }
        let fitted = if squares > 0.0 {
            products / squares
        } else {
            first
        };
        for scale in [first, fitted] {
            let error = |&weight: &f32| (scale * code(weight, scale) - weight).powi(2);
            let error = weights.iter().map(error).sum();
            if error < best.0 && scale != 0.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns weights between -1 and 1 whose runs differ in size and in sign.
    fn weights() -> Vec<f32> {
        let weight = |at: usize| {
            let size = ((at / 16) % 7 + 1) as f32 / 7.0;
            let noise = ((at * 7919) % 2003) as f32 / 1001.5 - 1.0;
            size * (noise + ((at / 64) % 3) as f32 * 0.3) / 1.6
        };
        (0..2048).map(weight).collect()
    }

    /// The largest error of a weight, in steps of its block: half of a step, more where the largest
    /// weights are cut off or where scales have six bits.
    fn steps(format: BlockFormat) -> (f32, f32) {
        match format {
            BlockFormat::Q8_0 => (127.0, 0.51),
            BlockFormat::Q4_0 => (8.0, 1.01),
            BlockFormat::Q5_0 => (16.0, 1.01),
            BlockFormat::Q4_1 => (7.5, 0.52),
            BlockFormat::Q5_1 => (15.5, 0.54),
            BlockFormat::Q4_K => (7.5, 1.4),
            BlockFormat::Q5_K => (15.5, 1.7),
            BlockFormat::Q6_K => (32.0, 1.6),
        }
    }

    #[test]
    fn weights_are_off_by_about_half_a_step() {
        let weights = weights();
        for format in BlockFormat::ALL {
            let blocks = quantize(format, &weights);
            assert_eq!(blocks.len(), format.row_bytes(weights.len()));
            assert!(format.is_finite(&blocks));
            let mut read = vec![0.0; weights.len()];
            format.dequantize(&blocks, &mut read);
            let (codes, most) = steps(format);
            let (mut worst, mut sum) = (0.0_f32, 0.0);
            let blocks = read
                .chunks(format.weights())
                .zip(weights.chunks(format.weights()));
            for (read, weights) in blocks {
                let step = extreme(weights).abs() / codes;
                for (read, weight) in read.iter().zip(weights) {
                    worst = worst.max((read - weight).abs() / step);
                    sum += (read - weight).abs() / step;
                }
            }
            assert!(worst <= most, "{format}: {worst}");
            assert!(sum / (weights.len() as f32) < 0.3, "{format}: {sum}");
        }
    }

    #[test]
    fn equal_weights_are_kept() {
        for format in BlockFormat::ALL {
            for weight in [0.0, 0.5, -0.5] {
                let weights = vec![weight; 256];
                let mut read = vec![1.0; 256];
                format.dequantize(&quantize(format, &weights), &mut read);
                let close = |read: &f32| (read - weight).abs() <= 0.005;
                assert!(read.iter().all(close), "{format}: {} for {weight}", read[0]);
            }
        }
    }
}
