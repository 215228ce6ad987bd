//! Prompts that begin as an earlier one.

use sparq::Method;
use sparq_serve::engine::{Engine, EngineConfig, Request};

use crate::support::{both_ways, collect, config, metric, request, sparq, start};

const SYSTEM: &str = "Thou shalt answer in the manner of the elders, and shalt not lie. ";

/// The text, and the tokens of the prompt that were known.
fn ask(engine: &Engine, prompt: &str, method: Method) -> (String, usize) {
    let request = Request {
        decoding: method.into(),
        ..request(prompt, 12)
    };
    let mut generation = engine.submit(request).unwrap();
    let (mut answers, known) = collect(&mut generation, 1);
    (answers.remove(0).text, known)
}

#[test]
fn common_beginning_is_read_once() {
    for config in both_ways() {
        let (fresh, used) = (start(config.clone()), start(config.clone()));
        let first = format!("{SYSTEM}Who made the sea?");
        let other = format!("{SYSTEM}Where is the ark?");
        assert_eq!(ask(&used.engine, &first, Method::DENSE).1, 0);
        // Dense attention keeps the answer too, apart from its last token.
        for (prompt, method) in [
            (&other, Method::DENSE),
            (&first, sparq()),
            (&other, sparq()),
        ] {
            let (expected, none) = ask(&start(config.clone()).engine, prompt, method);
            let (found, known) = ask(&used.engine, prompt, method);
            assert_eq!((found, none), (expected, 0));
            assert!(known >= SYSTEM.len() && known < prompt.len(), "{known}");
        }
        let (answer, _) = ask(&fresh.engine, &first, Method::DENSE);
        let next = format!("{first}{answer} And who made the sky?");
        let (_, known) = ask(&fresh.engine, &next, Method::DENSE);
        assert_eq!(known, first.len() + 11);
        let hits = metric(&used.metrics, "vllm:prefix_cache_hits_total");
        assert!(hits >= 3.0 * SYSTEM.len() as f64);
    }
}

#[test]
fn answer_of_sparse_steps_is_not_reused() {
    for config in both_ways() {
        let running = start(config);
        let first = format!("{SYSTEM}Who made the sea?");
        let (answer, _) = ask(&running.engine, &first, sparq());
        let next = format!("{first}{answer} And who made the sky?");
        assert_eq!(ask(&running.engine, &next, sparq()).1, first.len());
    }
}

#[test]
fn kept_caches_make_room_for_running_ones() {
    // Room for one sequence of about 600 positions.
    let running = start(EngineConfig {
        cache_bytes: 2 << 20,
        ..config()
    });
    for letter in ["a", "b", "c", "a"] {
        let prompt = letter.repeat(300);
        assert_eq!(
            ask(&running.engine, &prompt, Method::DENSE).1,
            0,
            "{letter}"
        );
    }
}

#[test]
fn rows_of_one_format_begin_no_prompt_of_another() {
    let int8: Method = "sparq:r=8,k=32,rows=int8".parse().unwrap();
    for mut config in both_ways() {
        config.decodings.push(int8.into());
        let used = start(config.clone());
        let first = format!("{SYSTEM}Who made the sea?");
        let other = format!("{SYSTEM}Where is the ark?");
        assert_eq!(ask(&used.engine, &first, Method::DENSE).1, 0);
        assert_eq!(ask(&used.engine, &first, int8).1, 0);
        for (prompt, method) in [(&other, int8), (&other, Method::DENSE), (&first, int8)] {
            let (expected, _) = ask(&start(config.clone()).engine, prompt, method);
            let (found, known) = ask(&used.engine, prompt, method);
            assert_eq!(found, expected);
            assert!(known >= SYSTEM.len() && known < prompt.len(), "{known}");
        }
    }
}
