//! Sequences in slots of one cache.

use burn::tensor::{Device, FloatDType};
use sparq::Method;
use sparq_models::text::SamplingConfig;
use sparq_models::{Decoder, DecoderConfig, embedded};
use sparq_serve::engine::{EngineConfig, Penalties, Request};

use crate::support::{
    RUNNING, alone, answer, both_ways, collect, config, metric, model, request, start, start_with,
    wait_until,
};

const RESERVED: &str = "sparq:cache_reserved_bytes";

fn text() -> String {
    "And God called the light Day, and the darkness he called Night. ".repeat(12)
}

fn slots(method: Method) -> EngineConfig {
    EngineConfig {
        decodings: vec![method.into()],
        slots: true,
        ..config()
    }
}

/// Submits requests one after the other, some while others run, and compares their answers with
/// those of single requests without slots.
fn assert_equal_alone(model: fn() -> Decoder, config: EngineConfig, method: Method) {
    let single = start_with(
        Box::new(model()),
        EngineConfig {
            slots: false,
            ..config.clone()
        },
    );
    let running = start_with(Box::new(model()), config);
    let text = text();
    // Longer than k, so that ranges are set at the end of every prompt.
    let cases = (0..14).map(|at| (&text[at..at + 70 + 32 * (at * 5 % 14)], 10 + 9 * (at % 6)));
    let cases: Vec<(&str, usize)> = cases.collect();
    let ask = |&(prompt, tokens): &(&str, usize)| Request {
        decoding: method.into(),
        ..request(prompt, tokens)
    };
    let submit = |case| running.engine.submit(ask(case)).unwrap();
    for cases in [&cases[..1], &cases[1..10], &cases[10..]] {
        let mut generations: Vec<_> = cases.iter().map(submit).collect();
        for (case, generation) in cases.iter().zip(&mut generations) {
            let found = collect(generation, 1).0.remove(0);
            assert_eq!(
                found,
                answer(&single.engine, ask(case)),
                "{method:?} {case:?}"
            );
        }
    }
}

#[test]
fn sketches_and_rows_in_8_bits_change_nothing() {
    for method in [
        "sparq:r=8,k=16",
        "sparq:r=16,k=64,sketch=4bits",
        "sparq:r=8,k=32,sketch=8bits,rows=int8",
        "dense:rows=int8",
    ] {
        let method: Method = method.parse().unwrap();
        assert_equal_alone(model, slots(method), method);
    }
}

#[test]
fn sliding_windows_change_nothing() {
    fn windowed() -> Decoder {
        let checkpoint = embedded::checkpoint().unwrap();
        let mut config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
        config.windows = vec![Some(48)];
        Decoder::load(&checkpoint, &config, FloatDType::F32, &Device::default()).unwrap()
    }
    for method in ["dense", "sparq:r=8,k=16"] {
        let method: Method = method.parse().unwrap();
        assert_equal_alone(windowed, slots(method), method);
    }
}

#[test]
fn requests_beyond_the_memory_for_slots_run_alone() {
    // Room for one sequence of about 600 positions, but not for its prompt and a slot.
    let config = EngineConfig {
        cache_bytes: 4 << 20,
        ..slots(Method::DENSE)
    };
    let running = start(config.clone());
    let prompt = &text()[..500];
    let found = answer(&running.engine, request(prompt, 60));
    assert_eq!(found.text, alone(&model(), prompt, 60, Method::DENSE));
    assert_equal_alone(model, config, Method::DENSE);
}

#[test]
fn sampled_answers_are_those_without_slots() {
    let text = text();
    let requests = || {
        let case = |at: usize| Request {
            sampling: SamplingConfig {
                // Every third is greedy.
                temperature: if at.is_multiple_of(3) { 0.0 } else { 0.9 },
                seed: at as u64,
                ..SamplingConfig::default()
            },
            logprobs: (at % 4 == 1).then_some(2),
            penalties: Penalties {
                presence: if at % 5 == 2 { 0.7 } else { 0.0 },
                ..Penalties::default()
            },
            ..request(&text[at..at + 60 + 11 * at], 20)
        };
        (0..8).map(case).collect::<Vec<_>>()
    };
    let [without, with] = both_ways().map(|config| {
        let running = start(config);
        let submit = |request| running.engine.submit(request).unwrap();
        let mut generations: Vec<_> = requests().into_iter().map(submit).collect();
        let answers = generations
            .iter_mut()
            .map(|one| collect(one, 1).0.remove(0));
        answers.collect::<Vec<_>>()
    });
    for (at, (found, want)) in with.iter().zip(&without).enumerate() {
        assert_eq!(
            (&found.text, found.tokens, found.finish),
            (&want.text, want.tokens, want.finish),
            "{at}"
        );
        assert_eq!(found.logprobs.len(), want.logprobs.len());
        for (found, want) in found.logprobs.iter().zip(&want.logprobs) {
            assert_eq!(found.token, want.token);
            assert!((found.logprob - want.logprob).abs() < 1e-4);
        }
    }
}

#[test]
fn slots_follow_the_demand() {
    let running = start(EngineConfig {
        context: 2048,
        ..slots(Method::DENSE)
    });
    let reserved = || metric(&running.metrics, RESERVED);
    let text = text();
    let mut long = running.engine.submit(request(&text[..100], 1500)).unwrap();
    wait_until(|| metric(&running.metrics, RUNNING) == 1.0 && reserved() > 0.0);
    let one = reserved();
    let others = (0..7).map(|at| request(&text[at..at + 100], 12));
    let others: Vec<_> = others
        .map(|request| running.engine.submit(request).unwrap())
        .collect();
    wait_until(|| reserved() > 7.0 * one);
    for mut other in others {
        assert_eq!(collect(&mut other, 1).0[0].tokens, 12);
    }
    // The long one goes on. The slots of the others are given back.
    wait_until(|| reserved() < 3.0 * one);
    assert_eq!(metric(&running.metrics, RUNNING), 1.0);
    let found = collect(&mut long, 1).0.remove(0);
    assert_eq!(
        found.text,
        alone(&model(), &text[..100], 1500, Method::DENSE)
    );
    wait_until(|| metric(&running.metrics, RUNNING) == 0.0);
    assert!((1.0..=one).contains(&reserved()), "{}", reserved());
}
