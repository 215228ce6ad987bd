//! `Sampler`, compared with the definitions of its settings.

use proptest::prelude::*;
use sparq_models::text::{Candidate, Sampler, SamplingConfig, SamplingError};

const DRAW: SamplingConfig = SamplingConfig {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    repetition_penalty: 1.0,
    repetition_window: 0,
    seed: 0,
};

fn candidates(config: SamplingConfig, logits: &[f32], history: &[u32]) -> Vec<Candidate> {
    Sampler::new(config)
        .unwrap()
        .candidates(&mut logits.to_vec(), history)
        .unwrap()
}

fn ids(candidates: &[Candidate]) -> Vec<u32> {
    candidates.iter().map(|candidate| candidate.id).collect()
}

/// Returns logits whose softmax is `probabilities`.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_lowest_id_of_equal_logits() {
    let mut greedy = Sampler::new(SamplingConfig::default()).unwrap();
    assert_eq!(greedy.sample(&mut [1.0, 3.0, 3.0, -1.0], &[]), Ok(1));
    assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, -5.0], &[]), Ok(1));
    assert_eq!(greedy.sample(&mut [-0.0, 0.0], &[]), Ok(0));
}

#[test]
fn default_candidates_are_the_softmax() {
    let found = candidates(DRAW, &logits(&[0.1, 0.2, 0.7]), &[]);
    assert_eq!(ids(&found), [2, 1, 0]);
    for (candidate, expected) in found.iter().zip([0.7, 0.2, 0.1]) {
        assert!((candidate.probability - expected).abs() < 1e-6);
    }
}

#[test]
fn temperature_precedes_top_p() {
    let logits = logits(&[0.5, 0.3, 0.2]);
    let config = SamplingConfig { top_p: 0.6, ..DRAW };
    assert_eq!(ids(&candidates(config, &logits, &[])), [0, 1]);
    // Squared and normalised: 0.658, 0.237, 0.105.
    let config = SamplingConfig {
        temperature: 0.5,
        ..config
    };
    assert_eq!(ids(&candidates(config, &logits, &[])), [0]);
}

#[test]
fn top_p_follows_top_k() {
    let logits = logits(&[0.4, 0.3, 0.2, 0.1]);
    let top_p = SamplingConfig {
        top_p: 0.55,
        ..DRAW
    };
    assert_eq!(ids(&candidates(top_p, &logits, &[])), [0, 1]);
    // Of the two tokens that top-k keeps, the first has 4/7 = 0.571.
    let both = SamplingConfig { top_k: 2, ..top_p };
    assert_eq!(ids(&candidates(both, &logits, &[])), [0]);
}

#[test]
fn penalty_lowers_each_logit_once() {
    let config = SamplingConfig {
        repetition_penalty: 2.0,
        ..SamplingConfig::default()
    };
    let mut logits = [3.0, -2.0, 2.0, -1.0];
    let chosen = Sampler::new(config)
        .unwrap()
        .sample(&mut logits, &[0, 1, 0, 0, 77]);
    assert_eq!(logits, [1.5, -4.0, 2.0, -1.0]);
    assert_eq!(chosen, Ok(2));
}

#[test]
fn penalty_applies_to_its_window() {
    let config = SamplingConfig {
        repetition_penalty: 2.0,
        repetition_window: 2,
        ..SamplingConfig::default()
    };
    let mut logits = [4.0; 4];
    Sampler::new(config)
        .unwrap()
        .sample(&mut logits, &[0, 1, 2])
        .unwrap();
    assert_eq!(logits, [4.0, 2.0, 2.0, 4.0]);
}

#[test]
fn nan_and_infinite_logits_are_counted() {
    for config in [SamplingConfig::default(), DRAW] {
        let mut sampler = Sampler::new(config).unwrap();
        let error = sampler
            .sample(&mut [f32::NAN, 1.0, f32::NAN, f32::INFINITY], &[])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "logits: expected finite values or -inf, found 2 NaN and 1 +inf of 4"
        );
        let masked = sampler.sample(&mut [f32::NEG_INFINITY; 3], &[]);
        assert_eq!(masked, Err(SamplingError::NoCandidate { len: 3 }));
        let empty = sampler.sample(&mut [], &[]);
        assert_eq!(empty, Err(SamplingError::NoCandidate { len: 0 }));
    }
}

#[test]
fn masked_token_is_never_a_candidate() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];
    for top_p in [0.999, 1.0] {
        let config = SamplingConfig { top_p, ..DRAW };
        assert_eq!(ids(&candidates(config, &logits, &[])), [1, 3]);
    }
}

#[test]
fn extreme_settings_give_a_distribution() {
    for temperature in [f32::MIN_POSITIVE, 1e-40, f32::MAX] {
        let config = SamplingConfig {
            temperature,
            ..DRAW
        };
        let found = candidates(config, &[f32::MAX, -f32::MAX, 0.0], &[]);
        let sum: f64 = found.iter().map(|candidate| candidate.probability).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{temperature}: {sum}");
    }
}

#[test]
fn setting_out_of_range_is_named() {
    let refused = |config: SamplingConfig| Sampler::new(config).unwrap_err().to_string();
    for temperature in [-0.5, f32::NAN, f32::INFINITY] {
        let error = refused(SamplingConfig {
            temperature,
            ..DRAW
        });
        assert!(error.starts_with("temperature: expected"), "{error}");
    }
    for top_p in [0.0, 1.5, f32::NAN] {
        let error = refused(SamplingConfig { top_p, ..DRAW });
        assert!(error.starts_with("top_p: expected"), "{error}");
    }
    for repetition_penalty in [0.0, -1.0, f32::INFINITY] {
        let error = refused(SamplingConfig {
            repetition_penalty,
            ..DRAW
        });
        assert!(error.starts_with("repetition_penalty: expected"), "{error}");
    }
    assert_eq!(
        refused(SamplingConfig { top_p: 1.5, ..DRAW }),
        "top_p: expected a number above 0 and at most 1 (1 keeps all tokens), found 1.5"
    );
}

#[test]
fn settings_with_unknown_names_are_refused() {
    let config: SamplingConfig = serde_json::from_str(r#"{"top_k": 40, "seed": 7}"#).unwrap();
    let expected = SamplingConfig {
        top_k: 40,
        seed: 7,
        ..SamplingConfig::default()
    };
    assert_eq!(config, expected);
    let error = serde_json::from_str::<SamplingConfig>(r#"{"topk": 40}"#).unwrap_err();
    assert!(error.to_string().contains("`topk`"), "{error}");
}

#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.4, 0.3, 0.15, 0.1, 0.05];
    let logits = logits(&probabilities);
    let mut sampler = Sampler::new(DRAW).unwrap();
    let draws = 20_000;
    let mut counts = [0u32; 5];
    for _ in 0..draws {
        counts[sampler.sample(&mut logits.clone(), &[]).unwrap() as usize] += 1;
    }
    let chi_square: f64 = counts
        .iter()
        .zip(probabilities)
        .map(|(&count, p)| {
            let expected = f64::from(draws) * f64::from(p);
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    // The 99.9th percentile with four degrees of freedom.
    assert!(chi_square < 18.47, "{chi_square}: {counts:?}");
}

#[test]
fn seed_determines_the_tokens() {
    let draw = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(SamplingConfig { seed, ..DRAW }).unwrap();
        (0..50)
            .map(|_| sampler.sample(&mut [0.0; 100], &[]).unwrap())
            .collect()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

proptest! {
    #[test]
    fn top_p_keeps_the_fewest_tokens_that_suffice(
        // More tokens than the sampler sorts at first, with flat to steep distributions.
        mut logits in prop::collection::vec(-1.0f32..1.0, 1..1200),
        steepness in 0.01f32..20.0,
        top_p in 0.01f32..0.999,
    ) {
        logits.iter_mut().for_each(|x| *x *= steepness);
        let all = candidates(DRAW, &logits, &[]);
        let kept = candidates(SamplingConfig { top_p, ..DRAW }, &logits, &[]);
        prop_assert_eq!(ids(&kept), ids(&all[..kept.len()]));
        let mass = |n: usize| all[..n].iter().map(|candidate| candidate.probability).sum::<f64>();
        let top_p = f64::from(top_p);
        prop_assert!(mass(kept.len()) >= top_p - 1e-9);
        prop_assert!(mass(kept.len() - 1) < top_p + 1e-9);
        let sum: f64 = kept.iter().map(|candidate| candidate.probability).sum();
        prop_assert!((sum - 1.0).abs() < 1e-9);
    }

    #[test]
    fn top_k_keeps_the_most_probable_k(
        logits in prop::collection::vec((-8i8..8).prop_map(f32::from), 1..200),
        top_k in 1usize..220,
    ) {
        let all = candidates(DRAW, &logits, &[]);
        let kept = candidates(SamplingConfig { top_k, ..DRAW }, &logits, &[]);
        prop_assert_eq!(ids(&kept), ids(&all[..top_k.min(logits.len())]));
    }

    #[test]
    fn top_k_of_one_is_greedy(
        // Few values, so that the largest often occurs twice.
        logits in prop::collection::vec((-2i8..3).prop_map(f32::from), 1..50),
        seed: u64,
    ) {
        let mut greedy = Sampler::new(SamplingConfig::default()).unwrap();
        let mut one = Sampler::new(SamplingConfig { top_k: 1, seed, ..DRAW }).unwrap();
        prop_assert_eq!(
            one.sample(&mut logits.clone(), &[]),
            greedy.sample(&mut logits.clone(), &[])
        );
    }

    #[test]
    fn drawn_token_is_a_candidate(
        logits in prop::collection::vec(-5.0f32..5.0, 1..80),
        top_k in 0usize..10,
        top_p in 0.1f32..1.0,
        seed: u64,
    ) {
        let config = SamplingConfig { top_k, top_p, seed, ..DRAW };
        let chosen = Sampler::new(config).unwrap().sample(&mut logits.clone(), &[]).unwrap();
        prop_assert!(ids(&candidates(config, &logits, &[])).contains(&chosen));
    }
}
