//! `Session` with a scripted model: its calls, the text, and the tokens left in the cache.

use std::ops::ControlFlow;

use burn::tensor::FloatDType;
use proptest::prelude::*;
use sparq::{Method, SparqConfig};
use sparq_models::{
    CausalLm,
    text::{
        FinishReason, GenerateError, GenerateEvent, GenerateOptions, Generated, SamplingConfig,
        Session, TextTokenizer,
    },
};

use crate::support::{
    scripted_lm::{
        Call::{Decode, Prefill},
        ScriptedLm,
    },
    vocabularies::{END, byte_level},
};

/// A token of two characters.
pub const A_HASH: u32 = END + 1;

fn tokenizer() -> TextTokenizer {
    byte_level(&[b"a#"]).with_eos_ids(vec![END])
}

pub fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

pub fn session(model: &ScriptedLm) -> Session {
    let cache = model
        .new_cache(1, 4, FloatDType::F32, &Method::DENSE)
        .unwrap();
    Session::new(cache, tokenizer())
}

/// Generates, and checks that the cache holds the tokens of the session.
pub fn generate(
    session: &mut Session,
    model: &ScriptedLm,
    prompt: &[u32],
    options: &GenerateOptions,
    on_event: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
) -> Result<Generated, GenerateError> {
    let generated = session.generate(model, prompt, options, on_event);
    assert_eq!(ScriptedLm::tokens_in(session.cache()), session.tokens());
    generated
}

/// Generates without a callback. Succeeds.
pub fn turn(
    session: &mut Session,
    model: &ScriptedLm,
    prompt: &str,
    options: &GenerateOptions,
) -> Generated {
    generate(session, model, &bytes(prompt), options, &mut go_on).unwrap()
}

pub fn go_on(_: GenerateEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Generates in a new session. Returns the pieces of text too.
fn pieces(
    model: &ScriptedLm,
    prompt: &[u32],
    options: &GenerateOptions,
) -> (Generated, Vec<String>) {
    let mut pieces = Vec::new();
    let generated = generate(&mut session(model), model, prompt, options, &mut |event| {
        if let GenerateEvent::Text(text) = event {
            pieces.push(text.to_owned());
        }
        ControlFlow::Continue(())
    });
    (generated.unwrap(), pieces)
}

/// Returns the default options after `change`.
pub fn options(change: impl FnOnce(&mut GenerateOptions)) -> GenerateOptions {
    let mut options = GenerateOptions::default();
    change(&mut options);
    options
}

pub fn stop(strings: &[&str]) -> GenerateOptions {
    options(|options| options.stop = strings.iter().map(|&stop| stop.to_owned()).collect())
}

#[track_caller]
pub fn assert_end(generated: &Generated, text: &str, finish: FinishReason) {
    assert_eq!((&*generated.text, &generated.finish), (text, &finish));
}

#[test]
fn prompt_is_read_once_and_tokens_are_decoded() {
    let (prompt, reply) = (bytes("ask"), [bytes("yes"), vec![END]].concat());
    let model = ScriptedLm::new(3, &reply);
    let (generated, pieces) = pieces(&model, &prompt, &GenerateOptions::default());
    let steps = bytes("yes").into_iter().map(Decode);
    let calls: Vec<_> = std::iter::once(Prefill(prompt)).chain(steps).collect();
    assert_eq!(model.take_calls(), calls);
    assert_eq!(pieces, ["y", "e", "s"]);
    assert_end(&generated, "yes", FinishReason::Eos);
    assert_eq!(generated.tokens, reply);
    assert_eq!((generated.prompt_tokens, generated.cached_tokens), (3, 0));
    assert_eq!((generated.prefill_tokens, generated.decode_steps), (3, 3));
    assert!(generated.prefill_tokens_per_second() > 0.0);
    assert!(generated.decode_tokens_per_second() > 0.0);
}

#[test]
fn next_turn_reads_what_the_cache_lacks() {
    let mut model = ScriptedLm::new(5, &[b'A'.into(), END]);
    let mut session = session(&model);
    let options = GenerateOptions::default();
    turn(&mut session, &model, "hello", &options);
    assert_eq!(session.tokens(), bytes("helloA"));
    model.take_calls();

    // The end-of-sequence token was sampled but not decoded: the next turn reads it.
    let second = [bytes("helloA"), vec![END], bytes("B")].concat();
    model.script = ScriptedLm::new(second.len(), &[END]).script;
    let generated = generate(&mut session, &model, &second, &options, &mut go_on).unwrap();
    assert_eq!(model.take_calls(), [Prefill(vec![END, b'B'.into()])]);
    assert_eq!((generated.cached_tokens, generated.prefill_tokens), (6, 2));

    // A prompt that differs in the middle truncates the cache there.
    model.script = ScriptedLm::new(7, &[END]).script;
    let generated = turn(&mut session, &model, "helpers", &options);
    assert_eq!(model.take_calls(), [Prefill(bytes("pers"))]);
    assert_eq!(generated.cached_tokens, 3);
    assert_eq!(session.tokens(), bytes("helpers"));

    // The last token is read again if the cache holds the whole prompt, and if it holds more.
    for (prompt, cached) in [("helpers", 6), ("hel", 2)] {
        model.script = ScriptedLm::new(prompt.len(), &[END]).script;
        let generated = turn(&mut session, &model, prompt, &options);
        let last = prompt.bytes().last().unwrap();
        assert_eq!(model.take_calls(), [Prefill(vec![last.into()])]);
        assert_eq!(generated.cached_tokens, cached);
        assert_eq!(generated.finish, FinishReason::Eos);
    }

    session.clear();
    assert!(session.tokens().is_empty() && session.cache().is_empty());
}

#[test]
fn new_session_clears_its_cache() {
    let model = ScriptedLm::new(2, &[END]);
    let mut used = session(&model);
    turn(&mut used, &model, "ab", &GenerateOptions::default());
    assert_eq!(used.cache().len(), 2);
    let new = Session::new(used.cache().clone(), tokenizer());
    assert!(new.cache().is_empty() && new.tokens().is_empty());
}

#[test]
fn long_prompt_is_read_in_chunks_with_progress() {
    let model = ScriptedLm::new(7, &[END]);
    let options = options(|options| options.prefill_chunk = 3);
    let (prompt, mut session, mut progress) = (bytes("abcdefg"), session(&model), Vec::new());
    generate(&mut session, &model, &prompt, &options, &mut |event| {
        if let GenerateEvent::Prefill { done, total } = event {
            progress.push((done, total));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let chunks = ["abc", "def", "g"].map(|chunk| Prefill(bytes(chunk)));
    assert_eq!(model.take_calls(), chunks);
    assert_eq!(progress, [(0, 7), (3, 7), (6, 7), (7, 7)]);
}

#[test]
fn stop_string_over_several_tokens_is_not_shown() {
    let reply: Vec<u32> = bytes("Paris.\nUser: more");
    let model = ScriptedLm::new(1, &reply);
    let (generated, pieces) = pieces(&model, &bytes("?"), &stop(&["\nUser:", "never"]));
    assert_eq!(pieces.concat(), "Paris.");
    assert_end(
        &generated,
        "Paris.",
        FinishReason::StopString("\nUser:".into()),
    );
    assert_eq!(generated.tokens, bytes("Paris.\nUser:"));
    assert_eq!(model.take_calls().last(), Some(&Decode(b'r'.into())));
}

#[test]
fn text_held_back_is_shown_at_the_end() {
    let model = ScriptedLm::new(1, &[bytes("a##"), vec![END]].concat());
    let (generated, pieces) = pieces(&model, &bytes("?"), &stop(&["###"]));
    assert_eq!(pieces, ["a", "##"]);
    assert_end(&generated, "a##", FinishReason::Eos);
}

#[test]
fn characters_over_several_tokens_are_shown_whole() {
    let model = ScriptedLm::new(1, &[bytes("né😀"), vec![END]].concat());
    let (generated, pieces) = pieces(&model, &bytes("?"), &GenerateOptions::default());
    assert_eq!(pieces, ["n", "é", "😀"]);
    assert_eq!(generated.text, "né😀");

    let cut = options(|options| options.max_new_tokens = 2);
    let (generated, pieces) = self::pieces(&model, &bytes("?"), &cut);
    assert_eq!(pieces, ["n", "\u{fffd}"]);
    assert_eq!(generated.text, "n\u{fffd}");
}

#[test]
fn incomplete_character_can_complete_a_stop_string() {
    let model = ScriptedLm::new(1, &[0xc3, END]);
    let (generated, pieces) = pieces(&model, &bytes("?"), &stop(&["\u{fffd}"]));
    assert!(pieces.is_empty());
    assert_eq!(
        generated.finish,
        FinishReason::StopString("\u{fffd}".into())
    );
}

#[test]
fn text_of_a_special_token_can_be_a_stop_string() {
    let any = options(|options| {
        options.stop = vec!["<|end|>".into()];
        options.eos_ids = Some(Vec::new());
    });
    let model = ScriptedLm::new(1, &[b'a'.into(), END, b'b'.into()]);
    let (generated, pieces) = pieces(&model, &bytes("?"), &any);
    assert_eq!(pieces, ["a"]);
    assert_end(&generated, "a", FinishReason::StopString("<|end|>".into()));
    assert_eq!(generated.tokens, [b'a'.into(), END]);
}

#[test]
fn max_new_tokens_ends_without_an_extra_step() {
    let model = ScriptedLm::new(2, &bytes("abcdef"));
    for max_new_tokens in 0..4 {
        let options = options(|options| options.max_new_tokens = max_new_tokens);
        let (generated, _) = pieces(&model, &bytes("??"), &options);
        assert_end(
            &generated,
            &"abc"[..max_new_tokens],
            FinishReason::MaxNewTokens,
        );
        assert_eq!(generated.decode_steps, max_new_tokens.saturating_sub(1));
        assert_eq!(model.take_calls().len(), max_new_tokens.max(1));
    }
}

#[test]
fn full_context_ends_the_generation() {
    let mut model = ScriptedLm::new(4, &bytes("abcdef"));
    model.context_len = 6;
    let (generated, _) = pieces(&model, &bytes("????"), &GenerateOptions::default());
    // Two tokens fill the context. The logits after them give the third.
    assert_end(&generated, "abc", FinishReason::ContextFull);

    model.context_len = 4;
    let (generated, _) = pieces(&model, &bytes("????"), &GenerateOptions::default());
    assert_end(&generated, "a", FinishReason::ContextFull);
}

#[test]
fn eos_ids_of_the_options_replace_the_tokenizers() {
    let model = ScriptedLm::new(1, &[b'a'.into(), END, b'b'.into(), b'c'.into()]);
    let with = |eos_ids: Vec<u32>| GenerateOptions {
        eos_ids: Some(eos_ids),
        max_new_tokens: 4,
        ..GenerateOptions::default()
    };
    let (generated, _) = pieces(&model, &bytes("?"), &with(vec![b'b'.into()]));
    assert_end(&generated, "a", FinishReason::Eos);
    let (generated, _) = pieces(&model, &bytes("?"), &with(Vec::new()));
    assert_end(&generated, "abc", FinishReason::MaxNewTokens);
}

#[test]
fn penalty_covers_prompt_and_generated_tokens() {
    // The script always says "a", with a logit of 1. "b" has a logit of 0.75.
    let mut model = ScriptedLm::new(1, &[b'a'.into(); 8]);
    model.second = Some(b'b'.into());
    let options = |repetition_window| GenerateOptions {
        sampling: SamplingConfig {
            repetition_penalty: 2.0,
            repetition_window,
            ..SamplingConfig::default()
        },
        max_new_tokens: 4,
        ..GenerateOptions::default()
    };
    let text = |prompt: &str, window| pieces(&model, &bytes(prompt), &options(window)).0.text;
    assert_eq!(text("?", 0), "abaa");
    assert_eq!(text("a", 0), "baaa");
    assert_eq!(text("a", 1), "baba");
}

proptest! {
    /// Turns may be cancelled or fail anywhere. The cache always holds the tokens of the session,
    /// and the model never reads a token that the cache holds.
    #[test]
    fn session_stays_consistent_over_any_turns(
        turns in prop::collection::vec(
            ("[ab]{1,6}", 1usize..4, 0usize..6, prop::option::of(1usize..12), prop::option::of(1usize..9)),
            1..8,
        ),
    ) {
        let mut model = ScriptedLm::new(0, &bytes("abababababababab"));
        let mut session = session(&model);
        for (prompt, prefill_chunk, max_new_tokens, fails_at, breaks_at) in turns {
            let before = session.tokens().to_vec();
            model.fails_at = fails_at;
            let options = GenerateOptions {
                method: Method::Sparq(SparqConfig::new(1, 2)),
                prefill_chunk,
                max_new_tokens,
                ..GenerateOptions::default()
            };
            let mut heard = 0;
            let result = generate(&mut session, &model, &bytes(&prompt), &options, &mut |_| {
                heard += 1;
                match breaks_at {
                    Some(breaks_at) if heard >= breaks_at => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            });
            if let Ok(generated) = result {
                let prompt = bytes(&prompt);
                let common = before.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(generated.cached_tokens, common.min(prompt.len() - 1));
                let sequence = [prompt, generated.tokens].concat();
                prop_assert!(sequence.starts_with(session.tokens()));
            }
        }
    }
}
