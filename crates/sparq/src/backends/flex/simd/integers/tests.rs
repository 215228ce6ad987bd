//! Every operation on each instruction set of this CPU against plain Rust.

#![allow(
    clippy::needless_range_loop,
    reason = "a lane is an index of several arrays"
)]

use super::*;
use crate::backends::flex::simd::MAX_LANES;

/// The bytes of two parts.
const BYTES: usize = 4 * MAX_LANES;

/// Compares the operations of a level with numbers of their definition.
struct Compare;

impl IntegerKernel for Compare {
    #[inline(always)]
    fn run<S: Integers>(self, simd: S) {
        let scattered = |index: usize| (index * 151 % 256) as u8;
        let from: Vec<u8> = (0..256).map(scattered).collect();
        let len = 4 * S::LANES;
        let bytes = |value: S::Bytes| {
            let mut to = [0; BYTES];
            simd.store_bytes(value, &mut to);
            to[..len].to_vec()
        };
        let part = |index: usize| (index / 32, index % 32);
        let check = |value: S::Bytes, expected: &dyn Fn(usize) -> u8| {
            let expected: Vec<u8> = (0..len).map(expected).collect();
            assert_eq!(bytes(value), expected);
        };
        check(simd.load_bytes(&from), &|i| from[i]);
        let parts = simd.load_parts(&from, 50);
        check(parts, &|i| from[part(i).0 * 50 + part(i).1]);
        check(simd.load_nibbles(&from, 18), &|i| {
            let (part, at) = part(i);
            match at {
                0..16 => from[part * 18 + at] & 15,
                _ => from[part * 18 + at - 16] >> 4,
            }
        });
        check(simd.splat_word(&from), &|i| from[i % 4]);
        check(simd.low_nibbles(parts), &|i| bytes(parts)[i] & 15);
        check(simd.high_nibbles(parts), &|i| bytes(parts)[i] >> 4);
        check(simd.flip(parts), &|i| bytes(parts)[i] ^ 128);
        let words = [0x8001_5aa5, 0x0f0f_1234];
        let fifth = simd.fifth_bits(words);
        check(fifth, &|i| ((words[part(i).0] >> part(i).1 & 1) << 4) as u8);
        check(simd.or(parts, fifth), &|i| {
            bytes(parts)[i] | bytes(fifth)[i]
        });
        for (shift, mask) in [([4, 6], 3), ([0, 2], 3), ([5, 7], 1)] {
            check(simd.upper_bits(parts, shift, mask), &|i| {
                (bytes(parts)[i] >> shift[part(i).0] & mask) << 4
            });
        }
        products(simd, &from);
        floats(simd);
    }
}

#[inline(always)]
fn lanes<S: Integers>(simd: S, value: S::F) -> Vec<f32> {
    let mut to = [0.0; MAX_LANES];
    simd.store(value, &mut to);
    to[..S::LANES].to_vec()
}

/// Products with the largest numbers among others.
#[inline(always)]
fn products<S: Integers>(simd: S, from: &[u8]) {
    let extreme = |codes: u8| -> (Vec<u8>, Vec<u8>) {
        let x = |i: usize| {
            if i < 8 {
                127
            } else {
                (from[i] as i8).max(-127) as u8
            }
        };
        let code = |i: usize| if i < 12 { codes } else { from[i + 64] & codes };
        ((0..BYTES).map(code).collect(), (0..BYTES).map(x).collect())
    };
    for (largest, wide) in [(127, false), (255, true), (127, true)] {
        let (codes, x) = extreme(largest);
        let start = simd.add_products::<false>(
            simd.zeros(),
            simd.splat_word(&[1; 4]),
            simd.splat_word(&[1; 4]),
        );
        let (left, right) = (simd.load_bytes(&codes), simd.load_bytes(&x));
        let sums = match wide {
            true => simd.add_products::<true>(start, left, right),
            false => simd.add_products::<false>(start, left, right),
        };
        let expected = |lane: usize| {
            let product = |i: usize| i32::from(codes[i]) * i32::from(x[i] as i8);
            (4 * lane..4 * lane + 4).map(product).sum::<i32>() as f32 + 4.0
        };
        let expected: Vec<f32> = (0..S::LANES).map(expected).collect();
        assert_eq!(
            lanes(simd, simd.to_floats(sums)),
            expected,
            "{largest} {wide}"
        );
    }
}

#[inline(always)]
fn floats<S: Integers>(simd: S) {
    let values = simd.four_load(&[1.0, 2.0, 3.0, 4.0]);
    let (two, four) = (
        lanes(simd, simd.spread_two(values, 1, 3)),
        lanes(simd, simd.spread_four(values, 0)),
    );
    for lane in 0..S::LANES {
        assert_eq!(two[lane], [2.0, 4.0][lane / 8]);
        assert_eq!(four[lane], (lane / 4 + 1) as f32);
    }
    if S::LANES == 8 {
        let last = lanes(simd, simd.spread_four(values, 2));
        assert_eq!(last, [3.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0]);
    }
    let check = |value: S::Four, expected: [f32; 4]| {
        let mut to = [0.0; 4];
        simd.four_store(value, &mut to);
        assert_eq!(to, expected);
    };
    // 1, -2, the smallest subnormal and the largest number.
    let halves = simd.four_halves([0x3c00, 0xc000, 1, 0x7bff]);
    check(halves, [1.0, -2.0, 2f32.powi(-24), 65504.0]);
    check(simd.four_unsigned(0x01ff_8002), [2.0, 128.0, 255.0, 1.0]);
    check(simd.four_signed(0x01ff_8002), [2.0, -128.0, -1.0, 1.0]);
    check(simd.four_doubled(&[5.0, 6.0]), [5.0, 5.0, 6.0, 6.0]);
    let half = simd.four_splat(0.5);
    check(simd.four_mul(values, half), [0.5, 1.0, 1.5, 2.0]);
    check(
        simd.four_mul_add(values, half, values),
        [1.5, 3.0, 4.5, 6.0],
    );
    let fours = [values, half, simd.four_splat(-1.0), values];
    assert_eq!(simd.four_sums(fours), [10.0, 2.0, -4.0, 10.0]);
    let numbers = [0.5, 1.5, -0.5, -127.0, 126.5, 2.4999, -3.5001, 127.0];
    let repeated: Vec<f32> = (0..MAX_LANES).map(|i| numbers[i % 8]).collect();
    let mut to = [0; MAX_LANES];
    simd.store_rounded(simd.load(&repeated), &mut to);
    for lane in 0..S::LANES {
        assert_eq!(to[lane] as i8, [0, 2, 0, -127, 126, 2, -4, 127][lane % 8]);
    }
}

#[test]
fn operations_equal_their_definitions() {
    for level in Level::all() {
        level.run_integers(Compare);
    }
}
