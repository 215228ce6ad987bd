//! Drafts and their verification: the tokens, text and cache of dense decoding.

use std::ops::ControlFlow;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use proptest::prelude::*;
use sparq::methods::Auto;
use sparq::{Sketch, SparqConfig};
use sparq_models::text::{
    CancelToken, FinishReason, GenerateError, GenerateEvent, GenerateOptions, Generated, Sampler,
    SamplingConfig, Session, SpeculativeConfig, SpeculativeDecoder, SpeculativeRow, TextTokenizer,
};
use sparq_models::{CausalLm, Decoder, DecoderConfig, DraftedLm, ModelCache, embedded};

use crate::session::{bytes, go_on, options, session, stop};
use crate::support::scripted_lm::{
    Call::{Decode, Prefill},
    ScriptedLm,
};
use crate::support::vocabularies::{END, byte_level};

/// Drafts of `tokens` tokens with r = 1 and k = 1, which skip positions at any length.
fn drafts(tokens: usize) -> SpeculativeConfig {
    let draft = Auto::new(SparqConfig::new(1, 1), 1, &Device::default());
    SpeculativeConfig::new(draft).with_tokens(Some(tokens))
}

fn with_drafts(tokens: usize, options: GenerateOptions) -> GenerateOptions {
    GenerateOptions {
        speculative: Some(drafts(tokens)),
        ..options
    }
}

fn drafting_session(model: &ScriptedLm) -> Session {
    let method = drafts(1).cache_method();
    let cache = model.new_cache(1, 4, FloatDType::F32, &method).unwrap();
    Session::new(cache, byte_level(&[b"a#"]).with_eos_ids(vec![END]))
}

/// Returns the script with another token where a bit of `wrong` is set, from `from` on.
fn spoiled(script: &[u32], from: usize, wrong: u32) -> Vec<u32> {
    let mut drafts = script.to_vec();
    for (bit, token) in drafts[from..].iter_mut().take(32).enumerate() {
        if wrong >> bit & 1 == 1 {
            *token = if *token == 1 { 2 } else { 1 };
        }
    }
    drafts
}

/// Generates with dense steps and with drafts, and compares everything but counts and times.
fn compare(
    model: &ScriptedLm,
    prompt: &[u32],
    tokens: usize,
    options: &GenerateOptions,
) -> Generated {
    let mut dense = session(model);
    let want = dense.generate(model, prompt, options, &mut go_on).unwrap();
    let mut drafting = drafting_session(model);
    let options = with_drafts(tokens, options.clone());
    let found = drafting
        .generate(model, prompt, &options, &mut go_on)
        .unwrap();
    assert_eq!(
        (
            &found.tokens,
            &found.text,
            &found.finish,
            found.decode_steps
        ),
        (&want.tokens, &want.text, &want.finish, want.decode_steps)
    );
    assert_eq!(drafting.tokens(), dense.tokens());
    assert_eq!(ScriptedLm::tokens_in(drafting.cache()), drafting.tokens());
    found
}

#[test]
fn draft_is_read_again_in_one_pass() {
    let mut model = ScriptedLm::new(1, &bytes("abcdef"));
    model.drafts = Some(spoiled(&model.script, 4, 1)); // The third draft token is wrong.
    let options = with_drafts(3, options(|options| options.max_new_tokens = 5));
    let mut session = drafting_session(&model);
    let generated = session
        .generate(&model, &bytes("?"), &options, &mut go_on)
        .unwrap();
    assert_eq!(generated.text, "abcde");
    let calls = [
        vec![Prefill(bytes("?"))],
        bytes("abc").into_iter().map(Decode).collect(),
        vec![Prefill([bytes("abc"), vec![1]].concat())],
        // One token is left, which a dense step gives.
        vec![Decode(b'd'.into())],
    ];
    assert_eq!(model.take_calls(), calls.concat());
    let stats = generated.speculative.unwrap();
    assert_eq!((stats.tokens, stats.drafted, stats.judged), (4, 3, 3));
    assert_eq!(
        (stats.accepted, stats.verifications, stats.dense_steps),
        (2, 1, 1)
    );
    assert_eq!(stats.acceptance(), Some(2.0 / 3.0));
    assert_eq!(stats.tokens_per_verification(), Some(3.0));
}

#[test]
fn rejection_at_every_position_changes_nothing() {
    let reply = [bytes("every position of a draft"), vec![END]].concat();
    for tokens in [1, 2, 5] {
        for wrong in 0..64 {
            let mut model = ScriptedLm::new(3, &reply);
            model.drafts = Some(spoiled(&model.script, 4, wrong));
            let found = compare(&model, &bytes("ask"), tokens, &GenerateOptions::default());
            assert_eq!(found.finish, FinishReason::Eos);
        }
    }
}

#[test]
fn ends_inside_a_draft_leave_no_later_token() {
    let reply = [bytes("one two"), vec![END], bytes("three")].concat();
    let model = ScriptedLm::new(3, &reply);
    let found = compare(&model, &bytes("ask"), 12, &GenerateOptions::default());
    assert_eq!((&*found.text, found.finish), ("one two", FinishReason::Eos));
    let found = compare(&model, &bytes("ask"), 12, &stop(&["e t"]));
    assert_eq!(found.text, "on");
    for most in 0..8 {
        let found = compare(
            &model,
            &bytes("ask"),
            5,
            &options(|o| o.max_new_tokens = most),
        );
        assert_eq!(found.tokens.len(), most);
    }
}

#[test]
fn drafts_end_with_the_context() {
    for context_len in 5..14 {
        let mut model = ScriptedLm::new(3, &bytes("a long reply to it"));
        model.context_len = context_len;
        let found = compare(&model, &bytes("ask"), 4, &GenerateOptions::default());
        assert_eq!(found.finish, FinishReason::ContextFull);
        assert_eq!(found.tokens.len(), context_len - 2);
    }
}

#[test]
fn next_turn_continues_after_a_stop_inside_a_draft() {
    let mut model = ScriptedLm::new(3, &bytes("xyz and more"));
    let mut session = drafting_session(&model);
    let options = with_drafts(6, stop(&["z"]));
    session
        .generate(&model, &bytes("ask"), &options, &mut go_on)
        .unwrap();
    assert_eq!(session.tokens(), bytes("askxy"));
    model.take_calls();
    model.script = ScriptedLm::new(6, &[END]).script;
    let next = session
        .generate(&model, &bytes("askxyq"), &options, &mut go_on)
        .unwrap();
    assert_eq!(model.take_calls(), [Prefill(bytes("q"))]);
    assert_eq!((next.cached_tokens, next.finish), (5, FinishReason::Eos));
}

#[test]
fn cancellation_inside_a_draft_ends_after_the_token() {
    let model = ScriptedLm::new(1, &bytes("abcdef"));
    for by_token in [false, true] {
        let cancel = CancelToken::new();
        let options = with_drafts(4, options(|options| options.cancel = cancel.clone()));
        let mut session = drafting_session(&model);
        let generated = session.generate(&model, &bytes("?"), &options, &mut |event| {
            match (event == GenerateEvent::Text("c"), by_token) {
                (true, false) => return ControlFlow::Break(()),
                (true, true) => cancel.cancel(),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        let generated = generated.unwrap();
        assert_eq!(
            (&*generated.text, generated.finish),
            ("abc", FinishReason::Cancelled)
        );
        assert_eq!(session.tokens(), bytes("?ab"));
        assert_eq!(ScriptedLm::tokens_in(session.cache()), bytes("?ab"));
    }
}

#[test]
fn failures_leave_the_cache_before_the_draft() {
    let reply = bytes("abcdefgh");
    // In a draft step, and in a verification.
    for fails_at in [3, 5] {
        let mut model = ScriptedLm::new(1, &reply);
        model.fails_at = Some(fails_at);
        let mut session = drafting_session(&model);
        let options = with_drafts(3, GenerateOptions::default());
        let error = session
            .generate(&model, &bytes("?"), &options, &mut go_on)
            .unwrap_err();
        assert!(matches!(error, GenerateError::Model(_)), "{error}");
        assert_eq!(session.tokens(), bytes("?"));
        assert_eq!(ScriptedLm::tokens_in(session.cache()), bytes("?"));
    }
    let mut model = ScriptedLm::new(1, &reply);
    model.nan_at = Some(5);
    let mut session = drafting_session(&model);
    let options = with_drafts(3, GenerateOptions::default());
    let error = session
        .generate(&model, &bytes("?"), &options, &mut go_on)
        .unwrap_err();
    assert!(matches!(error, GenerateError::Sampling(_)), "{error}");
    assert_eq!(ScriptedLm::tokens_in(session.cache()), session.tokens());
}

#[test]
fn settings_out_of_range_are_refused() {
    let model = ScriptedLm::new(1, &bytes("a"));
    for (config, words) in [
        (drafts(0), "1 to 15"),
        (drafts(16), "found 16"),
        (
            SpeculativeConfig::new(Auto::new(SparqConfig::new(3, 1), 1, &Device::default())),
            "rank",
        ),
    ] {
        let options = options(|options| options.speculative = Some(config));
        let error = drafting_session(&model).generate(&model, &[1], &options, &mut go_on);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

proptest! {
    /// With any draft, number of tokens, end and sampling without chance.
    #[test]
    fn any_draft_gives_the_generation_of_dense_steps(
        reply in prop::collection::vec(97u32..103, 1..40),
        end in prop::option::of(0usize..40),
        wrong: u32,
        tokens in 1usize..=15,
        most in 0usize..45,
        stops in prop::collection::vec("[a-f]{1,3}", 0..3),
        repetition_penalty in prop::sample::select(vec![1.0f32, 2.0]),
        context_len in 4usize..60,
    ) {
        let mut reply = reply;
        if let Some(end) = end.filter(|&end| end < reply.len()) {
            reply[end] = END;
        }
        let mut model = ScriptedLm::new(2, &reply);
        model.context_len = context_len;
        model.second = Some(b'g'.into());
        model.drafts = Some(spoiled(&model.script, 3, wrong));
        let options = GenerateOptions {
            max_new_tokens: most,
            stop: stops,
            sampling: SamplingConfig { repetition_penalty, ..SamplingConfig::default() },
            ..GenerateOptions::default()
        };
        compare(&model, &bytes("ab"), tokens, &options);
    }
}

fn load(device: &Device, dtype: FloatDType) -> (Decoder, DecoderConfig) {
    let checkpoint = embedded::checkpoint().unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    let model = Decoder::load(&checkpoint, &config, dtype, device).unwrap();
    (model, config)
}

/// A random model with a sliding window in some layers, or without.
fn random_model(window: Option<usize>) -> (Decoder, DecoderConfig) {
    let checkpoint = embedded::checkpoint().unwrap();
    let mut config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    config.windows = vec![None, window, window];
    config.num_hidden_layers = 3;
    let device = Device::default();
    device.seed(3);
    let model = Decoder::init(&config, FloatDType::F32, &device).unwrap();
    (model, config)
}

/// Drafts of the embedded model, poor enough that many tokens are rejected.
fn poor_drafts(config: &DecoderConfig, sketch: Sketch, tokens: usize) -> SpeculativeConfig {
    let group = config.num_attention_heads / config.num_key_value_heads;
    let sparq = SparqConfig::new(4, 12).with_sketch(sketch);
    let draft = Auto::new(sparq, group, &Device::default());
    SpeculativeConfig::new(draft).with_tokens(Some(tokens))
}

fn generated(
    model: &dyn CausalLm,
    speculative: Option<SpeculativeConfig>,
    tokens: usize,
    sampling: SamplingConfig,
) -> Generated {
    let options = GenerateOptions {
        speculative,
        sampling,
        max_new_tokens: tokens,
        ..GenerateOptions::default()
    };
    let method = speculative.map_or(options.method, |config| config.cache_method());
    let cache = model.new_cache(1, 64, FloatDType::F32, &method).unwrap();
    let tokenizer: TextTokenizer = embedded::tokenizer().unwrap();
    let mut session = Session::new(cache, tokenizer);
    let prompt = bytes("And it came to pass in those days, that there went out a decree");
    let found = session
        .generate(model, &prompt, &options, &mut go_on)
        .unwrap();
    assert_eq!(
        session.tokens().len(),
        prompt.len() + found.tokens.len() - 1
    );
    assert_eq!(session.cache().len(), session.tokens().len());
    found
}

#[test]
fn greedy_tokens_are_those_of_dense_decoding() {
    let (model, config) = load(&Device::default(), FloatDType::F32);
    let greedy = SamplingConfig::default();
    let want = generated(&model, None, 400, greedy).tokens;
    for (sketch, tokens) in [(Sketch::Bits4, 4), (Sketch::Full, 15), (Sketch::Bits8, 1)] {
        let found = generated(
            &model,
            Some(poor_drafts(&config, sketch, tokens)),
            400,
            greedy,
        );
        assert_eq!(found.tokens, want, "{sketch:?} {tokens}");
        let acceptance = found.speculative.unwrap().acceptance().unwrap();
        assert!((0.1..0.99).contains(&acceptance), "{acceptance}");
    }
}

#[test]
fn two_thousand_greedy_tokens_are_those_of_dense() {
    let (model, config) = load(&Device::default(), FloatDType::F32);
    let greedy = SamplingConfig::default();
    let want = generated(&model, None, 2000, greedy).tokens;
    let found = generated(
        &model,
        Some(poor_drafts(&config, Sketch::Bits4, 5)),
        2000,
        greedy,
    );
    assert_eq!(found.tokens.len(), 2000);
    assert_eq!(found.tokens, want);
}

#[test]
fn drafts_of_other_weights_change_no_token() {
    let (model, config) = random_model(None);
    let greedy = SamplingConfig::default();
    let want = generated(&model, None, 60, greedy).tokens;
    let seeded = |seed| {
        let device = Device::default();
        device.seed(seed);
        Box::new(Decoder::init(&config, FloatDType::F32, &device).unwrap())
    };
    for seed in [3, 4] {
        let model = DraftedLm::new(seeded(3), seeded(seed)).unwrap();
        let drafts = poor_drafts(&config, Sketch::Full, 3);
        let found = generated(&model, Some(drafts), 60, greedy);
        assert_eq!(found.tokens, want, "{seed}");
        let acceptance = found.speculative.unwrap().acceptance().unwrap();
        assert_eq!(acceptance > 0.3, seed == 3, "{acceptance}");
    }
    let (other, _) = load(&Device::default(), FloatDType::F32);
    let error = DraftedLm::new(Box::new(random_model(None).0), Box::new(other)).err();
    let error = error.unwrap().to_string();
    assert!(
        error.contains("draft model") && error.contains("3 layers"),
        "{error}"
    );
}

#[test]
fn adaptive_drafts_give_the_tokens_of_dense_decoding() {
    let (model, config) = load(&Device::default(), FloatDType::F32);
    let greedy = SamplingConfig {
        repetition_penalty: 1.1,
        ..SamplingConfig::default()
    };
    let want = generated(&model, None, 150, greedy).tokens;
    let mut speculative = poor_drafts(&config, Sketch::Bits4, 1).with_tokens(None);
    // At a short context no draft pays.
    let found = generated(&model, Some(speculative), 150, greedy);
    let stats = found.speculative.unwrap();
    assert_eq!(
        (found.tokens == want, stats.dense_steps, stats.drafted),
        (true, 149, 0)
    );
    // A device on which dense attention is slow.
    speculative.draft.costs.dense_us = 1e6;
    let found = generated(&model, Some(speculative), 150, greedy);
    let stats = found.speculative.unwrap();
    assert!(found.tokens == want && stats.verifications > 0, "{stats:?}");
}

#[test]
fn windowed_layers_give_the_tokens_of_dense_decoding() {
    for window in [None, Some(20)] {
        let (model, config) = random_model(window);
        let greedy = SamplingConfig::default();
        let want = generated(&model, None, 120, greedy).tokens;
        for tokens in [2, 7] {
            let speculative = poor_drafts(&config, Sketch::Bits4, tokens);
            let found = generated(&model, Some(speculative), 120, greedy);
            assert_eq!(found.tokens, want, "{window:?} {tokens}");
            assert!(found.speculative.unwrap().verifications > 10);
        }
    }
}

#[test]
fn equal_seeds_give_equal_tokens() {
    let (model, config) = load(&Device::default(), FloatDType::F32);
    let speculative = poor_drafts(&config, Sketch::Bits4, 3);
    let sampling = |seed| SamplingConfig {
        temperature: 0.9,
        top_p: 0.95,
        seed,
        ..SamplingConfig::default()
    };
    let [first, second, other] =
        [1, 1, 2].map(|seed| generated(&model, Some(speculative), 80, sampling(seed)).tokens);
    assert_eq!(first, second);
    assert_ne!(first, other);
}

fn read(model: &Decoder, rows: &[&[u32]], cache: &mut ModelCache, padding: &[usize]) {
    for layer in &mut cache.layers {
        layer.set_left_padding(padding).unwrap();
    }
    let ids: Vec<i64> = rows.concat().into_iter().map(i64::from).collect();
    let ids = TensorData::new(ids, [rows.len(), rows[0].len()]);
    let ids = Tensor::<2, Int>::from_data(ids, &model.device());
    model.prefill(ids, cache, 1).unwrap();
}

#[test]
fn sequences_of_a_batch_accept_their_own_lengths() {
    let (model, config) = load(&Device::default(), FloatDType::F32);
    let speculative = poor_drafts(&config, Sketch::Bits4, 4);
    let prompts = [
        "In the beginning was the Word, and",
        "     And he said unto them, Go ye into",
    ];
    let prompts = prompts.map(|prompt| bytes(&prompt[..34]));
    // Leading spaces of the second prompt are padding.
    let padding = [0, 5];
    let limits = [60, 37];
    let new = |batch| {
        let method = speculative.cache_method();
        model
            .new_cache(batch, 256, FloatDType::F32, &method)
            .unwrap()
    };
    let mut cache = new(2);
    let before = [&prompts[0][..33], &prompts[1][..33]];
    read(&model, &before, &mut cache, &padding);
    let mut sequences = prompts.clone();
    let mut samplers = [(); 2].map(|()| Sampler::new(SamplingConfig::default()).unwrap());
    let mut decoder = SpeculativeDecoder::new(&model, &mut cache, speculative).unwrap();
    let mut differ = false;
    loop {
        let mut rows: Vec<SpeculativeRow<'_>> = Vec::new();
        for ((sequence, sampler), limit) in sequences.iter().zip(&mut samplers).zip(limits) {
            rows.push(SpeculativeRow {
                sequence,
                sampler,
                limit: limit + 34 - sequence.len(),
            });
        }
        let found = decoder.step(&mut rows).unwrap();
        differ |= found[0].len() != found[1].len();
        if found.iter().all(Vec::is_empty) {
            break;
        }
        for (sequence, found) in sequences.iter_mut().zip(found) {
            sequence.extend(found);
        }
    }
    assert!(differ);
    drop(decoder);
    assert_eq!(cache.layers[0].spans().end, [93, 70]);
    for (row, prompt) in prompts.iter().enumerate() {
        let prompt = &prompt[padding[row]..];
        let mut cache = new(1);
        read(&model, &[prompt], &mut cache, &[0]);
        let mut logits = None;
        let mut sequence = prompt.to_vec();
        cache.truncate(prompt.len() - 1);
        for _ in 0..limits[row] {
            let last = i64::from(sequence[sequence.len() - 1]);
            let last =
                Tensor::<2, Int>::from_data(TensorData::new(vec![last], [1, 1]), &model.device());
            let step = model
                .decode(last, &mut cache, &sparq::Method::DENSE)
                .unwrap();
            let mut step: Vec<f32> = step.try_into_vec_as().unwrap();
            let mut greedy = Sampler::new(SamplingConfig::default()).unwrap();
            sequence.push(greedy.sample(&mut step, &sequence).unwrap());
            logits = Some(step);
        }
        assert!(logits.is_some());
        assert_eq!(&sequences[row][padding[row]..], sequence, "sequence {row}");
    }
}
