//! Cases computed by hand.

use super::*;

fn outputs(method: impl Into<Method>, queries: &[f32], cache: &mut KvCache) -> Vec<f32> {
    let device = cache.tensors().k.device();
    let q = tensor(queries, [1, queries.len(), 1, 1], &device);
    values(&method.into().decode(q, cache).unwrap())
}

#[test]
fn lm_infinite_reads_the_first_and_last_positions() {
    for device in devices() {
        let method = LmInfinite { top_k: 3, first: 1 };
        // Positions 0, 3 and 4: (4 1 + 1 4 + 8 5) / 13.
        assert_close(&outputs(method, &[1.0], &mut five(&device)), &[48.0 / 13.0]);
        assert_eq!(LmInfinite::new(128).first, 16);
        assert_eq!(LmInfinite::new(10).first, 5);
    }
}

#[test]
fn flexgen_keeps_weights_the_oracle_renormalises() {
    for device in devices() {
        // Positions 0 and 4: (4 1 + 8 5) of 16, or of 12.
        let mut cache = five(&device);
        assert_close(&outputs(FlexGen { top_k: 2 }, &[1.0], &mut cache), &[2.75]);
        let found = outputs(Oracle { top_k: 2 }, &[1.0], &mut cache);
        assert_close(&found, &[44.0 / 12.0]);
        // A second head with q = -1 has the weights 1/4, 1, 1/2, 1, 1/8. The sums of probabilities
        // are .34, .41, .30, .41, .54: positions 1, 3 and 4.
        let expected = [(2.0 + 4.0 + 40.0) / 10.0, (2.0 + 4.0 + 0.625) / 2.125];
        let found = outputs(Oracle { top_k: 3 }, &[1.0, -1.0], &mut cache);
        assert_close(&found, &expected);
        let expected = [46.0 / 16.0, 6.625 / 2.875];
        let found = outputs(FlexGen { top_k: 3 }, &[1.0, -1.0], &mut cache);
        assert_close(&found, &expected);
    }
}

#[test]
fn quest_selects_pages_by_their_bounds() {
    for device in devices() {
        // Three pages of two positions. For q = (1, -1) the bound of the first is 3 + 1, although
        // its positions score 3 - 2 and 0 + 1. The bound of the second is 1 + 1, which a position
        // reaches. The last page holds the current token.
        let keys = [3.0, 2.0, 0.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0];
        let ones = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0];
        let k = tensor(&keys, [1, 1, 5, 2], &device);
        let v = tensor(&ones, [1, 1, 5, 2], &device);
        let mut cache = cache_f32(&k, &v, None);
        let q = tensor(&[1.0, -1.0], [1, 1, 1, 2], &device);
        for group_score in [GroupScore::Probabilities, GroupScore::Logits] {
            let quest = Quest {
                page_size: 2,
                group_score,
                ..Quest::new(4)
            };
            let found = Method::from(quest).decode(q.clone(), &mut cache).unwrap();
            // Scores 1, 1, 0 over sqrt(2) for the values 1, 2, 5.
            let e = (1.0f32 / 2.0f32.sqrt()).exp();
            let expected = (3.0 * e + 5.0) / (2.0 * e + 1.0);
            assert_close(&values(&found), &[expected, expected]);
        }
        // By mean and deviation the first page scores 1 + sqrt(2 ln 2) sqrt(4.5) = 3.5, because its
        // position with the larger component has the wrong sign in the other. A second page of two
        // positions that score 3.6 is now ahead of it.
        let keys = [3.0, 2.0, 0.0, -1.0, 2.6, -1.0, 2.6, -1.0, 0.0, 0.0];
        let mut others = cache_f32(&tensor(&keys, [1, 1, 5, 2], &device), &v, None);
        let e = (3.6f32 / 2.0f32.sqrt()).exp();
        let seconds = (7.0 * e + 5.0) / (2.0 * e + 1.0);
        let f = (1.0f32 / 2.0f32.sqrt()).exp();
        let firsts = (3.0 * f + 5.0) / (2.0 * f + 1.0);
        for (bound, expected) in [
            (PageBound::Extremes, firsts),
            (PageBound::Deviations, seconds),
        ] {
            let quest = Quest {
                page_size: 2,
                bound,
                ..Quest::new(4)
            };
            let found = Method::from(quest).decode(q.clone(), &mut others).unwrap();
            assert_close(&values(&found), &[expected, expected]);
        }
        // The first component alone, which is the larger one of this query. Its bounds are 3, 1, 0.
        // With the 4 positions of two pages as candidates, the top two and the current position are
        // 0, 1 and 4.
        let q = tensor(&[1.0, -0.5], [1, 1, 1, 2], &device);
        let hybrid = Hybrid {
            rank: 1,
            page_size: 2,
            candidates: 4,
            top_k: 3,
            local_window: 1,
        };
        let found = Method::from(hybrid).decode(q, &mut cache).unwrap();
        // Exact scores 3 - 1, 0 + 0.5 and 0.
        let [a, b] = [2.0f32, 0.5].map(|score| (score / 2.0f32.sqrt()).exp());
        let expected = (a + 2.0 * b + 5.0) / (a + b + 1.0);
        assert_close(&values(&found), &[expected, expected]);
    }
}

/// H2O in plain loops, for one KV head with d = 1.
struct H2oByHand {
    received: Vec<f32>,
    alive: Vec<bool>,
}

impl H2oByHand {
    fn step(&mut self, queries: &[f32], keys: &[f32], values: &[f32], method: &H2o) -> Vec<f32> {
        let len = keys.len();
        self.received.resize(len, 0.0);
        self.alive.resize(len, true);
        let mut order: Vec<usize> = (0..len - method.local_window.min(len)).collect();
        order.retain(|&at| self.alive[at]);
        order.sort_by(|&a, &b| self.received[b].total_cmp(&self.received[a]));
        for &at in order.iter().skip(method.top_k - method.local_window) {
            self.alive[at] = false;
        }
        let weights = queries.iter().map(|q| {
            let weight = |at: usize| f32::from(self.alive[at]) * (q * keys[at]).exp();
            let weights: Vec<f32> = (0..len).map(weight).collect();
            let sum: f32 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect()
        });
        let weights: Vec<Vec<f32>> = weights.collect();
        for at in 0..len {
            let sum: f32 = weights.iter().map(|weights| weights[at]).sum();
            self.received[at] += sum / queries.len() as f32;
        }
        let mix = |weights: &Vec<f32>| weights.iter().zip(values).map(|(w, v)| w * v).sum();
        weights.iter().map(mix).collect()
    }
}

#[test]
fn h2o_evicts_the_least_attended_for_good() {
    for device in devices() {
        for (top_k, local_window) in [(4, 1), (5, 3)] {
            let method = H2o {
                top_k,
                local_window,
            };
            let mut cache = new_cache(&config([1, 1, 1], None), &device);
            cache.record_attention().unwrap();
            let mut hand = H2oByHand {
                received: Vec::new(),
                alive: Vec::new(),
            };
            let mut noise = Noise(11);
            let (keys, contents) = (noise.values(30), noise.values(30));
            for len in 1..=30 {
                let new = |all: &[f32]| tensor(&all[len - 1..len], [1, 1, 1, 1], &device);
                cache.append(new(&keys), new(&contents)).unwrap();
                let queries = noise.values(2);
                let expected = hand.step(&queries, &keys[..len], &contents[..len], &method);
                assert_close(&outputs(method, &queries, &mut cache), &expected);
                let alive = hand.alive.iter().filter(|alive| **alive).count();
                assert_eq!(alive, len.min(method.top_k));
            }
            let found = cache.received_attention().unwrap().into_data();
            for (at, found) in found.iter::<f32>().enumerate() {
                match hand.alive[at] {
                    true => assert!((found - hand.received[at]).abs() < 1e-4),
                    false => assert_eq!(found, f32::NEG_INFINITY),
                }
            }
            // No other method can read a cache with evicted positions.
            let error = Method::DENSE.decode(tensor(&[1.0], [1, 1, 1, 1], &device), &mut cache);
            assert!(matches!(error, Err(SparqError::Value { .. })), "{error:?}");
            assert!(cache.for_method(&Method::DENSE).is_err());
        }
    }
}

#[test]
fn prefill_records_attention_like_single_steps() {
    for device in devices() {
        for window in [None, Some(7)] {
            let attention = SparqAttentionConfig::new(16, 4, 2, 8)
                .with_rotary(Some(RotaryConfig::new(8)))
                .with_window(window)
                .init(&device)
                .unwrap();
            let method = Method::from(H2o::new(64));
            let new = || {
                let config = attention.cache_config(2, 1, FloatDType::F32, &method);
                let mut cache = new_cache(&config, &device);
                cache.set_left_padding(&[0, 3]).unwrap();
                cache.record_attention().unwrap();
                cache
            };
            let x = Noise(3).tensor([1, 2, 20, 16], &device).squeeze_dim::<3>(0);
            let (mut whole, mut stepwise) = (new(), new());
            let part = |range| x.clone().slice_dim(1, range);
            for range in [0..12, 12..20] {
                attention.forward(part(range), Some(&mut whole)).unwrap();
            }
            attention.forward(part(0..5), Some(&mut stepwise)).unwrap();
            for at in 5..20 {
                let token = part(at..at + 1);
                // Both the dense steps and H2O's own record attention.
                let method = if at % 2 == 0 { Method::DENSE } else { method };
                attention.decode(token, &mut stepwise, &method).unwrap();
            }
            let [whole, stepwise] =
                [whole, stepwise].map(|cache| cache.received_attention().unwrap());
            assert!(max_difference(&whole, &stepwise) < 1e-5);
            // The weights of each query sum to 1, and those of padding to 0.
            let sums = values(&whole.sum_dim(2));
            assert_close(&sums, &[20.0, 20.0, 17.0, 17.0]);
        }
    }
}
