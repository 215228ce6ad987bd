//! Cases computed by hand.

use super::*;

fn outputs(method: impl Into<Method>, queries: &[f32], cache: &mut KvCache) -> Vec<f32> {
    let device = cache.tensors().k.device();
    let q = tensor(queries, [1, queries.len(), 1, 1], &device);
    values(&method.into().decode(q, cache).unwrap())
}

#[test]
fn the_first_and_the_latest_positions_are_lm_infinites() {
    for device in devices() {
        let method = LmInfinite { top_k: 3, first: 1 };
        // Positions 0, 3 and 4: (4 1 + 1 4 + 8 5) / 13.
        assert_close(&outputs(method, &[1.0], &mut five(&device)), &[48.0 / 13.0]);
        assert_eq!(LmInfinite::new(128).first, 16);
        assert_eq!(LmInfinite::new(10).first, 5);
    }
}

#[test]
fn flexgen_does_not_renormalise_and_the_oracle_does() {
    for device in devices() {
        // Positions 0 and 4: (4 1 + 8 5) of 16, or of 12.
        let mut cache = five(&device);
        assert_close(&outputs(FlexGen { top_k: 2 }, &[1.0], &mut cache), &[2.75]);
        assert_close(
            &outputs(Oracle { top_k: 2 }, &[1.0], &mut cache),
            &[44.0 / 12.0],
        );
        // With a head of q = -1, whose weights are 1/4, 1, 1/2, 1, 1/8, the sums of probabilities are .34, .41, .30, .41, .54: positions 1, 3 and 4.
        let expected = [(2.0 + 4.0 + 40.0) / 10.0, (2.0 + 4.0 + 0.625) / 2.125];
        assert_close(
            &outputs(Oracle { top_k: 3 }, &[1.0, -1.0], &mut cache),
            &expected,
        );
        let expected = [46.0 / 16.0, 6.625 / 2.875];
        assert_close(
            &outputs(FlexGen { top_k: 3 }, &[1.0, -1.0], &mut cache),
            &expected,
        );
    }
}

#[test]
fn quest_keeps_the_pages_with_the_best_bounds() {
    for device in devices() {
        // Three pages of two positions. For q = (1, -1) the bounds of the first are 3 + 1, though its positions score 3 - 2 and 0 + 1; of the second, 1 + 1, where a
        // position has both. The last one is current.
        let keys = [3.0, 2.0, 0.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0];
        let ones = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0];
        let k = tensor(&keys, [1, 1, 5, 2], &device);
        let v = tensor(&ones, [1, 1, 5, 2], &device);
        let mut cache = cache_of(&k, &v, FloatDType::F32, None);
        let q = tensor(&[1.0, -1.0], [1, 1, 1, 2], &device);
        for group_score in [GroupScore::Probabilities, GroupScore::Logits] {
            let quest = Quest {
                page_size: 2,
                top_k: 4,
                group_score,
            };
            let found = Method::from(quest).decode(q.clone(), &mut cache).unwrap();
            // Scores 1, 1, 0 over sqrt(2) for the values 1, 2, 5.
            let e = (1.0f32 / 2.0f32.sqrt()).exp();
            let expected = (3.0 * e + 5.0) / (2.0 * e + 1.0);
            assert_close(&values(&found), &[expected, expected]);
        }
        // One component alone, the first (of equal ones, whichever: the two queries differ). Its bounds are 3, 1, 0; with all 4 of two pages as candidates, the
        // best two positions and the current one are 0, 1 and 4.
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

/// What H2O does, in loops: the weights of each step for one head of one component, and what positions have received.
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
            let weight = |at: usize| {
                if self.alive[at] {
                    (q * keys[at]).exp()
                } else {
                    0.0
                }
            };
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
fn h2o_evicts_what_has_received_least_and_forever() {
    for device in devices() {
        for method in [
            H2o {
                top_k: 4,
                local_window: 1,
            },
            H2o {
                top_k: 5,
                local_window: 3,
            },
        ] {
            let mut cache = config(1, 1, 1, None).init(&device).unwrap();
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
                assert_eq!(
                    hand.alive.iter().filter(|alive| **alive).count(),
                    len.min(method.top_k)
                );
            }
            let found = cache.received_attention().unwrap().into_data();
            for (at, found) in found.iter::<f32>().enumerate() {
                match hand.alive[at] {
                    true => assert!((found - hand.received[at]).abs() < 1e-4),
                    false => assert_eq!(found, f32::NEG_INFINITY),
                }
            }
            // Nobody else can read what is left.
            let error = Method::DENSE.decode(tensor(&[1.0], [1, 1, 1, 1], &device), &mut cache);
            assert!(matches!(error, Err(SparqError::Value { .. })), "{error:?}");
            assert!(cache.for_method(&Method::DENSE).is_err());
        }
    }
}

#[test]
fn a_prefill_records_what_its_tokens_record_one_by_one() {
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
                let mut cache = config.init(&device).unwrap();
                cache.set_left_padding(&[0, 3]).unwrap();
                cache.record_attention().unwrap();
                cache
            };
            let x = Noise(3).tensor([1, 2, 20, 16], &device).squeeze_dim::<3>(0);
            let (mut whole, mut stepwise) = (new(), new());
            attention
                .forward(x.clone().slice_dim(1, 0..12), Some(&mut whole))
                .unwrap();
            attention
                .forward(x.clone().slice_dim(1, 12..20), Some(&mut whole))
                .unwrap();
            attention
                .forward(x.clone().slice_dim(1, 0..5), Some(&mut stepwise))
                .unwrap();
            for at in 5..20 {
                let token = x.clone().slice_dim(1, at..at + 1);
                // The dense step records for H2O, and H2O for itself.
                let method = if at % 2 == 0 { Method::DENSE } else { method };
                attention.decode(token, &mut stepwise, &method).unwrap();
            }
            let [whole, stepwise] =
                [whole, stepwise].map(|cache| cache.received_attention().unwrap());
            assert!(max_difference(&whole, &stepwise) < 1e-5);
            // Every query gives a weight of 1 in all, and padding none.
            let sums = values(&whole.sum_dim(2));
            assert_close(&sums, &[20.0, 20.0, 17.0, 17.0]);
        }
    }
}
