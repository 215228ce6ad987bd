//! Generations that end early: cancel tokens, callbacks, failing models and refused prompts.

use std::ops::ControlFlow;

use sparq_models::text::{
    CancelToken, FinishReason, GenerateError, GenerateEvent, GenerateOptions,
};

use crate::session::{A_HASH, assert_end, bytes, generate, go_on, options, session, stop, turn};
use crate::support::scripted_lm::{Call::Prefill, ScriptedLm};
use crate::support::vocabularies::END;

#[test]
fn cancel_token_ends_decoding_between_tokens() {
    let model = ScriptedLm::new(1, &bytes("abcdef"));
    let cancel = CancelToken::new();
    let options = options(|options| options.cancel = cancel.clone());
    let mut session = session(&model);
    let generated = generate(&mut session, &model, &bytes("?"), &options, &mut |event| {
        if event == GenerateEvent::Text("b") {
            cancel.cancel();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_end(&generated, "ab", FinishReason::Cancelled);
    assert_eq!(session.tokens(), bytes("?a"));

    // The cache keeps the tokens read so far, and the next turn continues from there.
    cancel.reset();
    model.take_calls();
    let generated = turn(&mut session, &model, "?ab", &options);
    assert_eq!(model.take_calls()[0], Prefill(bytes("b")));
    assert!(generated.text.starts_with("cdef"));
}

#[test]
fn cancel_token_ends_prefill_between_chunks() {
    let model = ScriptedLm::new(6, &bytes("x"));
    let cancel = CancelToken::new();
    let options = GenerateOptions {
        prefill_chunk: 2,
        ..options(|options| options.cancel = cancel.clone())
    };
    let mut session = session(&model);
    let prompt = bytes("abcdef");
    let generated = generate(&mut session, &model, &prompt, &options, &mut |event| {
        if event == (GenerateEvent::Prefill { done: 4, total: 6 }) {
            cancel.cancel();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(generated.finish, FinishReason::Cancelled);
    assert_eq!((generated.prefill_tokens, generated.tokens.len()), (4, 0));
    assert_eq!(session.tokens(), bytes("abcd"));
}

#[test]
fn callback_that_breaks_is_not_called_again() {
    let model = ScriptedLm::new(2, &bytes("ab\u{e9}"));
    for breaks_at in 0..5 {
        let (mut heard, mut session) = (0, session(&model));
        let options = GenerateOptions::default();
        let generated = generate(&mut session, &model, &bytes("??"), &options, &mut |_| {
            heard += 1;
            match heard > breaks_at {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .unwrap();
        assert_eq!(generated.finish, FinishReason::Cancelled);
        assert_eq!(heard, breaks_at + 1);
        // The first two events are prefill events.
        assert_eq!(generated.text, ["", "", "a", "ab", "abé"][breaks_at]);
    }
}

#[test]
fn callback_that_breaks_gets_no_text_held_back() {
    let model = ScriptedLm::new(1, &[A_HASH, b'b'.into()]);
    let (mut heard, mut session) = (Vec::new(), session(&model));
    let options = stop(&["##"]);
    let generated = generate(&mut session, &model, &bytes("?"), &options, &mut |event| {
        let GenerateEvent::Text(text) = event else {
            return ControlFlow::Continue(());
        };
        heard.push(text.to_owned());
        ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(heard, ["a"]);
    assert_end(&generated, "a#", FinishReason::Cancelled);
}

#[test]
fn failing_model_leaves_the_session_before_the_step() {
    let mut model = ScriptedLm::new(3, &bytes("abcdef"));
    let default = GenerateOptions::default();
    for (fails_at, left) in [(3, ""), (5, "???a")] {
        model.fails_at = Some(fails_at);
        let mut session = session(&model);
        let error =
            generate(&mut session, &model, &bytes("???"), &default, &mut go_on).unwrap_err();
        assert!(matches!(error, GenerateError::Model(_)), "{error}");
        assert_eq!(session.tokens(), bytes(left));

        model.fails_at = None;
        let three = options(|options| options.max_new_tokens = 3);
        assert_eq!(turn(&mut session, &model, "???", &three).text, "abc");
    }
}

#[test]
fn nan_logits_are_an_error() {
    let mut model = ScriptedLm::new(1, &bytes("abc"));
    model.nan_at = Some(2);
    let (mut session, options) = (session(&model), GenerateOptions::default());
    let error = generate(&mut session, &model, &bytes("?"), &options, &mut go_on).unwrap_err();
    let expected = "logits: expected finite values or -inf, found 1 NaN and 0 +inf of 300";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn refused_prompts_name_limit_and_value() {
    let mut model = ScriptedLm::new(1, &[]);
    model.context_len = 4;
    let refused = |prompt: &[u32], options: &GenerateOptions| {
        generate(&mut session(&model), &model, prompt, options, &mut go_on)
            .unwrap_err()
            .to_string()
    };
    let default = GenerateOptions::default();
    let no_chunk = options(|options| options.prefill_chunk = 0);
    let negative = options(|options| options.sampling.temperature = -1.0);
    let cases = [
        (
            &[][..],
            &default,
            "prompt: expected at least one token, found none",
        ),
        (
            &[1; 5],
            &default,
            "prompt: expected at most 4 tokens (the model's context), found 5",
        ),
        (
            &[1, 300],
            &default,
            "prompt: expected token ids below 300 (the model's vocabulary), found 300 at position \
             1; does the tokenizer belong to the model?",
        ),
        (
            &[1],
            &no_chunk,
            "prefill_chunk: expected at least 1, found 0",
        ),
    ];
    for (prompt, options, expected) in cases {
        assert_eq!(refused(prompt, options), expected);
    }
    assert!(refused(&[1], &negative).starts_with("temperature: expected"));
    assert!(refused(&[1], &stop(&[""])).starts_with("stop: expected"));
    assert!(
        model.take_calls().is_empty(),
        "a refused prompt is not read"
    );
}

#[test]
fn refused_prompt_leaves_the_cache_unchanged() {
    let model = ScriptedLm::new(2, &[END]);
    let mut session = session(&model);
    let options = GenerateOptions::default();
    turn(&mut session, &model, "ab", &options);
    generate(&mut session, &model, &[], &options, &mut go_on).unwrap_err();
    assert_eq!(session.tokens(), bytes("ab"));
}
