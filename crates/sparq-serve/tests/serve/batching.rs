//! Answers under load equal those of a session. Queue, cancellation and failures.

use burn::tensor::{Device, FloatDType, Int, Tensor};
use sparq::{Method, SparqError};
use sparq_models::text::SamplingConfig;
use sparq_models::{CausalLm, Decoder, ModelCache, SequenceStep};
use sparq_serve::engine::{EngineConfig, EngineError, Event, Finish, Penalties, Request};

use crate::support::{
    CANCELLED, FAILED, RUNNING, alone, answer, both_ways, collect, lossless, metric, model,
    request, sparq, start, start_with, wait_until,
};

const TEXT: &str = "In the beginning God created the heaven and the earth. And the earth was \
                    without form, and void; and darkness was upon the face of the deep. ";

/// Prompts of many lengths, some longer than several chunks.
fn prompts() -> Vec<String> {
    let text = TEXT.repeat(4);
    let of = |index: usize| text[index..index + 5 + 23 * index].to_owned();
    (0..20).map(of).collect()
}

#[test]
fn answers_under_load_equal_those_alone() {
    // Slots for dense attention, for SparQ, and none.
    let [without, dense] = both_ways();
    let sparse = EngineConfig {
        decodings: vec![sparq().into(), Method::DENSE.into()],
        ..dense.clone()
    };
    for config in [without, dense, sparse] {
        assert_load_changes_nothing(config);
    }
}

fn assert_load_changes_nothing(config: EngineConfig) {
    let model = model();
    let running = start(config);
    let methods = [Method::DENSE, sparq()];
    let cases = prompts().into_iter().enumerate();
    let cases: Vec<_> = cases
        .map(|(at, prompt)| (prompt, 8 + 3 * at, methods[at % 2]))
        .collect();
    let mut generations: Vec<_> = cases
        .iter()
        .map(|&(ref prompt, tokens, method)| {
            let request = Request {
                decoding: method.into(),
                ..request(prompt, tokens)
            };
            running.engine.submit(request).unwrap()
        })
        .collect();
    for ((prompt, tokens, method), generation) in cases.iter().zip(&mut generations) {
        let answer = collect(generation, 1).0.remove(0);
        assert_eq!(
            answer.text,
            alone(&model, prompt, *tokens, *method),
            "{prompt:?}"
        );
        assert_eq!(
            (answer.tokens, answer.finish),
            (*tokens, Some(Finish::Length))
        );
    }
    wait_until(|| metric(&running.metrics, RUNNING) == 0.0);
    let length = "vllm:request_success_total length";
    assert_eq!(metric(&running.metrics, length), 20.0);
}

#[test]
fn lossless_answers_are_those_of_dense_attention() {
    for config in both_ways() {
        let running = start(config);
        let model = model();
        let lossless = |prompt: &str| Request {
            decoding: lossless(),
            ..request(prompt, 40)
        };
        // Alone with drafts, then in a batch.
        let expected = |prompt: &str| alone(&model, prompt, 40, Method::DENSE);
        let mut drafted = running.engine.submit(lossless(TEXT)).unwrap();
        assert_eq!(collect(&mut drafted, 1).0[0].text, expected(TEXT));
        let prompts = prompts();
        let requests = prompts.iter().map(|prompt| lossless(prompt));
        let generations = requests.map(|request| running.engine.submit(request).unwrap());
        let generations: Vec<_> = generations.collect();
        for (prompt, mut generation) in prompts.iter().zip(generations) {
            let found = collect(&mut generation, 1).0.remove(0);
            assert_eq!(
                (found.text, found.tokens),
                (expected(prompt), 40),
                "{prompt}"
            );
        }
    }
}

#[test]
fn choices_share_a_prompt_and_differ_by_seed() {
    for config in both_ways() {
        let running = start(config);
        let sampled = |seed: u64, choices: usize| Request {
            choices,
            sampling: SamplingConfig {
                temperature: 1.0,
                seed,
                ..SamplingConfig::default()
            },
            ..request(TEXT, 24)
        };
        let mut generation = running.engine.submit(sampled(5, 3)).unwrap();
        let (answers, _) = collect(&mut generation, 3);
        for (index, expected) in answers.iter().enumerate() {
            let found = answer(&running.engine, sampled(5 + index as u64, 1));
            assert_eq!(&found, expected);
        }
        assert_ne!(answers[0], answers[1]);
    }
}

#[test]
fn stop_string_ends_an_answer_and_is_not_in_it() {
    for config in both_ways() {
        let running = start(config);
        let whole = answer(&running.engine, request(TEXT, 60)).text;
        let stop = whole[20..24].to_owned();
        let at = whole.find(&stop).unwrap();
        let request = Request {
            stop: vec![stop],
            logprobs: Some(2),
            ..request(TEXT, 60)
        };
        let found = answer(&running.engine, request);
        assert_eq!(
            (found.text.as_str(), found.finish),
            (&whole[..at], Some(Finish::Stop))
        );
        // Tokens are bytes; those of the stop string have none.
        assert_eq!(found.logprobs.len(), at);
        for (token, byte) in found.logprobs.iter().zip(whole.bytes()) {
            assert_eq!(
                (token.token, token.top[0].0),
                (u32::from(byte), u32::from(byte))
            );
            assert_eq!((token.top.len(), token.logprob), (2, token.top[0].1));
            assert!(token.logprob <= 0.0 && token.top[1].1 <= token.logprob);
        }
    }
}

#[test]
fn penalties_change_what_is_sampled() {
    for config in both_ways() {
        let running = start(config);
        let found = answer(
            &running.engine,
            Request {
                penalties: Penalties {
                    bias: vec![(u32::from(b'z'), 100.0)],
                    ..Penalties::default()
                },
                ..request(TEXT, 5)
            },
        );
        assert_eq!(found.text, "zzzzz");
    }
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    for config in both_ways() {
        let running = start(EngineConfig {
            cache_bytes: 2 << 20,
            ..config
        });
        let refused = |request: Request| running.engine.submit(request).unwrap_err();
        let error = refused(request("", 1));
        assert!(matches!(error, EngineError::Prompt { .. }), "{error}");
        let error = refused(request(&"a".repeat(1000), 25));
        assert!(
            matches!(error, EngineError::Context { context: 1024, .. }),
            "{error}"
        );
        let error = refused(request(&"a".repeat(700), 25));
        assert!(
            matches!(error, EngineError::Memory { positions: 725, .. }),
            "{error}"
        );
        let error = refused(Request {
            choices: 9,
            ..request("a", 1)
        });
        assert!(
            matches!(error, EngineError::Choices { most: 8, found: 9 }),
            "{error}"
        );
        let error = refused(Request {
            prompt: vec![256],
            ..request("", 1)
        });
        assert!(error.to_string().contains("below 256"), "{error}");
        let error = refused(Request {
            stop: vec![String::new()],
            ..request("a", 1)
        });
        assert!(matches!(error, EngineError::Request { .. }), "{error}");
        assert_eq!(answer(&running.engine, request("a", 0)).tokens, 0);
    }
}

#[test]
fn full_queue_refuses_and_leaving_frees_a_place() {
    for config in both_ways() {
        let running = start(EngineConfig {
            max_batch: 1,
            max_queue: 2,
            context: 8192,
            ..config
        });
        let long = || running.engine.submit(request("a", 8000));
        let first = long().unwrap();
        wait_until(|| metric(&running.metrics, RUNNING) == 1.0);
        let (second, third) = (long().unwrap(), long().unwrap());
        let error = long().unwrap_err();
        assert!(
            matches!(error, EngineError::QueueFull { most: 2, .. }),
            "{error}"
        );
        drop((first, second, third));
        wait_until(|| metric(&running.metrics, CANCELLED) == 3.0);
        assert_eq!(answer(&running.engine, request("a", 3)).tokens, 3);
        wait_until(|| metric(&running.metrics, RUNNING) == 0.0);
        assert_eq!(metric(&running.metrics, CANCELLED), 3.0);
    }
}

#[test]
fn stopped_engine_finishes_what_runs() {
    for config in both_ways() {
        let running = start(EngineConfig {
            max_batch: 1,
            ..config
        });
        let mut first = running.engine.submit(request(TEXT, 200)).unwrap();
        wait_until(|| metric(&running.metrics, RUNNING) == 1.0);
        let mut second = running.engine.submit(request(TEXT, 200)).unwrap();
        running.engine.stop();
        assert_eq!(collect(&mut first, 1).0[0].tokens, 200);
        let event = second.wait();
        assert!(
            matches!(event, Event::Failed(EngineError::Stopping)),
            "{event:?}"
        );
        let error = running.engine.submit(request(TEXT, 1)).unwrap_err();
        assert!(matches!(error, EngineError::Stopping), "{error}");
        wait_until(|| running.engine.has_ended());
    }
}

/// A model that panics in a step that has the token `!`, and in prompts that have it.
struct Fragile(Decoder);

impl Fragile {
    fn check(tokens: &Tensor<2, Int>) {
        let tokens = tokens.clone().into_data();
        assert!(
            !tokens.iter::<i64>().any(|id| id == i64::from(b'!')),
            "a bad token"
        );
    }
}

impl CausalLm for Fragile {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn context_len(&self) -> usize {
        self.0.context_len()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn new_cache(
        &self,
        batch: usize,
        capacity: usize,
        dtype: FloatDType,
        method: &Method,
    ) -> Result<ModelCache, SparqError> {
        self.0.new_cache(batch, capacity, dtype, method)
    }

    fn prefill(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        last: usize,
    ) -> Result<Tensor<3>, SparqError> {
        Self::check(&tokens);
        self.0.prefill(tokens, cache, last)
    }

    fn decode(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut ModelCache,
        method: &Method,
    ) -> Result<Tensor<3>, SparqError> {
        let logits = self.0.decode(tokens.clone(), cache, method)?;
        Self::check(&tokens);
        Ok(logits)
    }

    fn decode_each(
        &self,
        tokens: Tensor<2, Int>,
        sequences: &mut [SequenceStep<'_>],
    ) -> Result<Tensor<3>, SparqError> {
        let logits = self.0.decode_each(tokens.clone(), sequences)?;
        Self::check(&tokens);
        Ok(logits)
    }
}

#[test]
fn failed_request_harms_no_other() {
    for config in both_ways() {
        let running = start_with(Box::new(Fragile(model())), config);
        let expected = alone(&model(), TEXT, 40, Method::DENSE);
        let mut good = running.engine.submit(request(TEXT, 40)).unwrap();
        // The first token of its answer is the one that the model cannot read.
        let in_step = running.engine.submit(Request {
            penalties: Penalties {
                bias: vec![(u32::from(b'!'), 100.0)],
                ..Penalties::default()
            },
            ..request("And", 10)
        });
        let in_prompt = running.engine.submit(request("Alas!", 10)).unwrap();
        for mut bad in [in_step.unwrap(), in_prompt] {
            loop {
                match bad.wait() {
                    Event::Failed(error) => {
                        assert!(error.to_string().contains("a bad token"), "{error}");
                        break;
                    }
                    Event::End { .. } => panic!("expected a failure"),
                    _ => {}
                }
            }
        }
        assert_eq!(collect(&mut good, 1).0[0].text, expected);
        assert_eq!(answer(&running.engine, request(TEXT, 40)).text, expected);
        assert_eq!(metric(&running.metrics, FAILED), 2.0);
    }
}
