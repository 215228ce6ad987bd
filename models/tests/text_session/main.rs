//! `Session` with a model that says what is written down: what it reads, what is shown, and what stays in the cache.

mod endings;
#[path = "../text_support"]
mod text_support {
    pub mod scripted_lm;
    pub mod vocabularies;
}

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
use text_support::{
    scripted_lm::{
        Call::{Decode, Prefill},
        ScriptedLm,
    },
    vocabularies::{END, byte_level},
};

/// A token of two characters.
const A_HASH: u32 = END + 1;

fn tokenizer() -> TextTokenizer {
    byte_level(&[b"a#"]).with_eos_ids(vec![END])
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn session(model: &ScriptedLm) -> Session {
    let cache = model
        .new_cache(1, 4, FloatDType::F32, &Method::DENSE)
        .unwrap();
    Session::new(cache, tokenizer())
}

/// Generates and checks that the session is consistent, whatever came out.
fn generate(
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

fn go_on(_: GenerateEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Generates in a fresh session and returns the pieces of text too.
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

fn stop(strings: &[&str]) -> GenerateOptions {
    GenerateOptions {
        stop: strings.iter().map(|&stop| stop.to_owned()).collect(),
        ..GenerateOptions::default()
    }
}

#[test]
fn a_prompt_is_read_once_and_every_token_but_the_last_fed_back() {
    let prompt = bytes("ask");
    let model = ScriptedLm::new(3, &[b'y'.into(), b'e'.into(), b's'.into(), END]);
    let (generated, pieces) = pieces(&model, &prompt, &GenerateOptions::default());
    assert_eq!(
        model.take_calls(),
        [
            Prefill(prompt),
            Decode(b'y'.into()),
            Decode(b'e'.into()),
            Decode(b's'.into())
        ]
    );
    assert_eq!(pieces, ["y", "e", "s"]);
    assert_eq!(generated.text, "yes");
    assert_eq!(
        generated.tokens,
        [b'y'.into(), b'e'.into(), b's'.into(), END]
    );
    assert_eq!(generated.finish, FinishReason::Eos);
    assert_eq!(
        (
            generated.prompt_tokens,
            generated.cached_tokens,
            generated.prefill_tokens,
            generated.decode_steps
        ),
        (3, 0, 3, 3)
    );
    assert!(
        generated.prefill_tokens_per_second() > 0.0 && generated.decode_tokens_per_second() > 0.0
    );
}

#[test]
fn the_next_turn_reads_only_what_the_cache_lacks() {
    let first = bytes("hello");
    let mut model = ScriptedLm::new(5, &[b'A'.into(), END]);
    let mut session = session(&model);
    let options = GenerateOptions::default();
    generate(&mut session, &model, &first, &options, &mut go_on).unwrap();
    assert_eq!(session.tokens(), bytes("helloA"));
    model.take_calls();

    // The end of the sequence was chosen but never fed: the next turn reads it.
    let second = [bytes("helloA"), vec![END], bytes("B")].concat();
    model.script = ScriptedLm::new(second.len(), &[END]).script;
    let generated = generate(&mut session, &model, &second, &options, &mut go_on).unwrap();
    assert_eq!(model.take_calls(), [Prefill(vec![END, b'B'.into()])]);
    assert_eq!((generated.cached_tokens, generated.prefill_tokens), (6, 2));

    // A prompt that differs in the middle rolls the cache back to there.
    let third = bytes("helpers");
    model.script = ScriptedLm::new(third.len(), &[END]).script;
    let generated = generate(&mut session, &model, &third, &options, &mut go_on).unwrap();
    assert_eq!(model.take_calls(), [Prefill(bytes("pers"))]);
    assert_eq!(generated.cached_tokens, 3);
    assert_eq!(session.tokens(), third);

    // Of a prompt that the cache holds wholly, and of one that it holds more than, the last token is read again.
    for (prompt, cached) in [("helpers", 6), ("hel", 2)] {
        model.script = ScriptedLm::new(prompt.len(), &[END]).script;
        let generated =
            generate(&mut session, &model, &bytes(prompt), &options, &mut go_on).unwrap();
        let last = prompt.bytes().last().unwrap();
        assert_eq!(model.take_calls(), [Prefill(vec![last.into()])]);
        assert_eq!(
            (generated.cached_tokens, &generated.finish),
            (cached, &FinishReason::Eos)
        );
    }

    session.clear();
    assert!(session.tokens().is_empty() && session.cache().is_empty());
}

#[test]
fn a_session_forgets_what_its_cache_held_before() {
    let model = ScriptedLm::new(2, &[END]);
    let mut used = session(&model);
    generate(
        &mut used,
        &model,
        &bytes("ab"),
        &GenerateOptions::default(),
        &mut go_on,
    )
    .unwrap();
    assert_eq!(used.cache().len(), 2);
    let fresh = Session::new(used.cache().clone(), tokenizer());
    assert!(fresh.cache().is_empty() && fresh.tokens().is_empty());
}

#[test]
fn a_long_prompt_is_read_in_pieces_with_progress() {
    let model = ScriptedLm::new(7, &[END]);
    let options = GenerateOptions {
        prefill_chunk: 3,
        ..GenerateOptions::default()
    };
    let mut progress = Vec::new();
    generate(
        &mut session(&model),
        &model,
        &bytes("abcdefg"),
        &options,
        &mut |event| {
            if let GenerateEvent::Prefill { done, total } = event {
                progress.push((done, total));
            }
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert_eq!(
        model.take_calls(),
        [
            Prefill(bytes("abc")),
            Prefill(bytes("def")),
            Prefill(bytes("g"))
        ]
    );
    assert_eq!(progress, [(0, 7), (3, 7), (6, 7), (7, 7)]);
}

#[test]
fn a_stop_string_over_several_tokens_is_never_shown() {
    let reply: Vec<u32> = bytes("Paris.\nUser: more");
    let model = ScriptedLm::new(1, &reply);
    let (generated, pieces) = pieces(&model, &bytes("?"), &stop(&["\nUser:", "never"]));
    assert_eq!(generated.text, "Paris.");
    assert_eq!(pieces.concat(), "Paris.");
    assert_eq!(
        generated.finish,
        FinishReason::StopString("\nUser:".to_owned())
    );
    assert_eq!(generated.tokens, bytes("Paris.\nUser:"));
    assert_eq!(model.take_calls().last(), Some(&Decode(b'r'.into())));
}

#[test]
fn what_was_held_back_for_a_stop_string_is_shown_at_the_end() {
    let model = ScriptedLm::new(1, &[bytes("a##"), vec![END]].concat());
    let (generated, pieces) = pieces(&model, &bytes("?"), &stop(&["###"]));
    assert_eq!(pieces, ["a", "##"]);
    assert_eq!(
        (generated.text.as_str(), generated.finish),
        ("a##", FinishReason::Eos)
    );
}

#[test]
fn characters_over_several_tokens_are_shown_whole() {
    let model = ScriptedLm::new(1, &[bytes("né😀"), vec![END]].concat());
    let (generated, pieces) = pieces(&model, &bytes("?"), &GenerateOptions::default());
    assert_eq!(pieces, ["n", "é", "😀"]);
    assert_eq!(generated.text, "né😀");

    let cut = GenerateOptions {
        max_new_tokens: 2,
        ..GenerateOptions::default()
    };
    let (generated, pieces) = self::pieces(&model, &bytes("?"), &cut);
    assert_eq!(pieces, ["n", "\u{fffd}"]);
    assert_eq!(generated.text, "n\u{fffd}");
}

#[test]
fn a_cut_character_can_complete_a_stop_string() {
    let model = ScriptedLm::new(1, &[0xc3, END]);
    let (generated, pieces) = pieces(&model, &bytes("?"), &stop(&["\u{fffd}"]));
    assert!(pieces.is_empty());
    assert_eq!(
        generated.finish,
        FinishReason::StopString("\u{fffd}".to_owned())
    );
}

#[test]
fn generation_ends_after_max_new_tokens_without_a_needless_step() {
    let model = ScriptedLm::new(2, &bytes("abcdef"));
    for max_new_tokens in 0..4 {
        let options = GenerateOptions {
            max_new_tokens,
            ..GenerateOptions::default()
        };
        let (generated, _) = pieces(&model, &bytes("??"), &options);
        assert_eq!(generated.text, "abc"[..max_new_tokens]);
        assert_eq!(generated.finish, FinishReason::MaxNewTokens);
        assert_eq!(generated.decode_steps, max_new_tokens.saturating_sub(1));
        assert_eq!(model.take_calls().len(), max_new_tokens.max(1));
    }
}

#[test]
fn generation_ends_where_the_context_is_full() {
    let mut model = ScriptedLm::new(4, &bytes("abcdef"));
    model.context_len = 6;
    let (generated, _) = pieces(&model, &bytes("????"), &GenerateOptions::default());
    // Two tokens fill the context, and the third is what the model says behind them.
    assert_eq!(
        (generated.text.as_str(), generated.finish),
        ("abc", FinishReason::ContextFull)
    );

    model.context_len = 4;
    let (generated, _) = pieces(&model, &bytes("????"), &GenerateOptions::default());
    assert_eq!(
        (generated.text.as_str(), generated.finish),
        ("a", FinishReason::ContextFull)
    );
}

#[test]
fn the_callers_ends_of_a_sequence_replace_the_tokenizers() {
    let model = ScriptedLm::new(1, &[b'a'.into(), END, b'b'.into(), b'c'.into()]);
    let with = |eos_ids: Vec<u32>| GenerateOptions {
        eos_ids: Some(eos_ids),
        max_new_tokens: 4,
        ..GenerateOptions::default()
    };
    let (generated, _) = pieces(&model, &bytes("?"), &with(vec![b'b'.into()]));
    assert_eq!(
        (generated.text.as_str(), generated.finish),
        ("a", FinishReason::Eos)
    );
    let (generated, _) = pieces(&model, &bytes("?"), &with(Vec::new()));
    assert_eq!(
        (generated.text.as_str(), generated.finish),
        ("abc", FinishReason::MaxNewTokens)
    );
}

#[test]
fn the_penalty_sees_the_prompt_and_what_was_generated() {
    // The script says "a" for ever, with a logit of 1 to the 0.75 of "b".
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
    /// Any turns, cancelled and failing at any place: the cache always holds the tokens, and no token is read that it holds.
    #[test]
    fn a_session_stays_consistent_over_any_turns(
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
