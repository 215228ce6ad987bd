//! Answers that follow a JSON schema. The embedded model has not learned JSON: the grammar alone
//! makes its answers valid.

use serde_json::{Map, Value, json};
use sparq_models::CausalLm;
use sparq_models::text::SamplingConfig;
use sparq_serve::engine::{Engine, EngineError, Finish, Grammars, Penalties, Request};

use crate::support::{
    Answer, FAILED, answer, collect, config, lossless, metric, model, request, serve, sparq, start,
    tokenizer,
};

/// A sampled request whose answers follow a schema.
fn follow(engine: &Engine, schema: &Value, seed: u64) -> Request {
    Request {
        grammar: Some(engine.grammars().compile(schema).unwrap()),
        sampling: SamplingConfig {
            temperature: 1.0,
            seed,
            ..SamplingConfig::default()
        },
        ..request("And God said, ", 900)
    }
}

/// The document of an answer that has one, and not only its beginning.
fn document(answer: &Answer) -> Value {
    assert_eq!(answer.finish, Some(Finish::Stop), "{:?}", answer.text);
    serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {:?}", answer.text))
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 2, "maxLength": 8 },
            "kind": { "enum": ["king", "prophet"] },
            "age": { "type": "integer", "minimum": 3, "maximum": 120 },
            "sons": {
                "type": "array",
                "items": { "$ref": "#/$defs/son" },
                "minItems": 1,
                "maxItems": 2,
            },
        },
        "required": ["name", "kind", "age", "sons"],
        "additionalProperties": false,
        "$defs": { "son": {
            "type": "object",
            "properties": { "first": { "type": "boolean" }, "none": { "type": "null" } },
            "required": ["first"],
            "additionalProperties": false,
        }},
    })
}

fn check_person(person: &Value) {
    let name = person["name"].as_str().unwrap().chars().count();
    assert!((2..=8).contains(&name), "{person}");
    assert!(["king", "prophet"].contains(&person["kind"].as_str().unwrap()));
    assert!((3..=120).contains(&person["age"].as_i64().unwrap()));
    let sons = person["sons"].as_array().unwrap();
    assert!((1..=2).contains(&sons.len()));
    assert!(sons.iter().all(|son| son["first"].is_boolean()));
    let keys: Vec<&String> = person.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 4, "{person}");
}

#[test]
fn objects_follow_their_schema() {
    let engine = start(config()).engine;
    for seed in 0..6 {
        check_person(&document(&answer(
            &engine,
            follow(&engine, &person(), seed),
        )));
    }
}

#[test]
fn greedy_answers_follow_their_schema() {
    let engine = start(config()).engine;
    for decoding in [sparq().into(), lossless()] {
        let greedy = Request {
            sampling: SamplingConfig::default(),
            decoding,
            ..follow(&engine, &person(), 0)
        };
        check_person(&document(&answer(&engine, greedy)));
    }
}

#[test]
fn arrays_and_choices_follow_their_schema() {
    let engine = start(config()).engine;
    let pair = json!({ "type": "array", "items": { "type": "number", "minimum": 0, "maximum": 9 },
        "minItems": 2, "maxItems": 2 });
    let word = json!({ "enum": ["yes", "no", { "maybe": [null, true] }] });
    let object = json!({ "type": "object" });
    for seed in 0..3 {
        let found = document(&answer(&engine, follow(&engine, &pair, seed)));
        let numbers: Vec<f64> = found
            .as_array()
            .unwrap()
            .iter()
            .flat_map(Value::as_f64)
            .collect();
        assert_eq!(numbers.len(), 2, "{found}");
        assert!(numbers.iter().all(|number| (0.0..=9.0).contains(number)));
        let found = document(&answer(&engine, follow(&engine, &word, seed)));
        assert!(word["enum"].as_array().unwrap().contains(&found), "{found}");
        let short = Request {
            // A prose model rarely ends a document: the bias does.
            penalties: Penalties {
                bias: vec![(u32::from(b'}'), 100.0)],
                ..Penalties::default()
            },
            ..follow(&engine, &object, seed)
        };
        assert!(document(&answer(&engine, short)).is_object());
    }
}

#[test]
fn answers_of_a_request_have_states_of_their_own() {
    let engine = start(config()).engine;
    let request = Request {
        choices: 4,
        ..follow(&engine, &person(), 7)
    };
    let together = collect(&mut engine.submit(request.clone()).unwrap(), 4).0;
    together
        .iter()
        .for_each(|answer| check_person(&document(answer)));
    assert!(
        together
            .iter()
            .any(|answer| answer.text != together[0].text)
    );
    // Answer i has the seed plus i.
    let second = answer(&engine, follow(&engine, &person(), 8));
    assert_eq!(second.text, together[1].text);
}

#[test]
fn limits_and_stops_end_a_document() {
    let engine = start(config()).engine;
    let cut = Request {
        max_tokens: Some(5),
        ..follow(&engine, &person(), 1)
    };
    let cut = answer(&engine, cut);
    assert_eq!((cut.finish, cut.tokens), (Some(Finish::Length), 5));
    let stopped = Request {
        stop: vec!["\"kind\"".into()],
        ..follow(&engine, &person(), 1)
    };
    let stopped = answer(&engine, stopped);
    assert_eq!(stopped.finish, Some(Finish::Stop));
    assert!(stopped.text.contains("\"name\"") && !stopped.text.contains("kind"));
    // The end of the document and the last token may be the same.
    let word = json!({ "const": "amen" });
    let last = Request {
        max_tokens: Some(6),
        ..follow(&engine, &word, 1)
    };
    let last = answer(&engine, last);
    assert_eq!((last.finish, &*last.text), (Some(Finish::Stop), "\"amen\""));
}

#[test]
fn logprobs_are_those_of_the_model() {
    let engine = start(config()).engine;
    let with = |grammar| Request {
        grammar,
        logprobs: Some(1),
        max_tokens: Some(1),
        sampling: SamplingConfig::default(),
        ..request("And God said, ", 1)
    };
    let free = answer(&engine, with(None)).logprobs.remove(0);
    let grammar = engine.grammars().compile(&person()).unwrap();
    let bound = answer(&engine, with(Some(grammar))).logprobs.remove(0);
    assert_eq!(free.top, bound.top);
    assert_eq!(bound.token, u32::from(b'{'));
    assert!(bound.logprob < free.logprob);
}

#[test]
fn wrong_schemas_are_refused() {
    let grammars = Grammars::new(tokenizer(), model().vocab_size());
    // A chain of definitions, as deep as the compiler's recursion gets.
    let chain = |length: usize| {
        let link = |i: usize| json!({ "items": { "$ref": format!("#/$defs/{}", i + 1) } });
        let mut links: Map<String, Value> = (0..length).map(|i| (i.to_string(), link(i))).collect();
        links.insert(length.to_string(), json!({ "type": "null" }));
        json!({ "$defs": links, "$ref": "#/$defs/0" })
    };
    let large = json!({ "enum": (0..20_000).collect::<Vec<u32>>() });
    for (schema, part) in [
        (json!(true), "an object"),
        (json!({ "type": "strange" }), "strange"),
        (json!({ "not": {} }), "not"),
        (
            json!({ "type": "string", "pattern": "(" }),
            "unclosed group",
        ),
        (json!({ "$ref": "#/$defs/none" }), "none"),
        (
            json!({ "$ref": "https://example.com/schema" }),
            "example.com",
        ),
        (json!({ "allOf": [{ "$ref": "#" }] }), "found"),
        (json!({ "enum": [] }), "empty"),
        (
            json!({ "const": { "a": "\u{e9}".repeat(99) }, "minimum": "\u{e9}".repeat(99),
            "type": "number" }),
            "found",
        ),
        (json!({ "const": i64::MIN, "type": "integer" }), "-9e18"),
        (large, "65536"),
        (chain(3000), "65536"),
    ] {
        let error = grammars.compile(&schema).unwrap_err();
        assert!(matches!(error, EngineError::Schema { .. }));
        let message = error.to_string();
        assert!(
            message.starts_with("expected") && message.contains(part),
            "{message}"
        );
        assert!(message.len() < 1000, "{message}");
    }
    grammars.compile(&chain(1500)).unwrap();
}

#[test]
fn routes_take_response_formats() {
    let server = serve(config(), "");
    let format = json!({ "type": "json_schema", "json_schema": { "name": "person",
        "schema": person(), "strict": true } });
    let messages = json!([{ "role": "user", "content": "Who?" }]);
    let body = json!({ "messages": messages, "response_format": format, "max_tokens": 900 });
    let response = server.post("/v1/chat/completions", &body.to_string());
    let choice = &response.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    check_person(&serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap());
    let body = json!({ "prompt": ["a", "b"], "response_format": format, "max_tokens": 900,
        "stream": true });
    let events = server.post("/v1/completions", &body.to_string()).events();
    for index in 0..2 {
        let choices = events.iter().map(|event| &event["choices"][0]);
        let own = choices.filter(|choice| choice["index"] == index);
        let text: String = own.flat_map(|choice| choice["text"].as_str()).collect();
        check_person(&serde_json::from_str(&text).unwrap());
    }
    let wrong = json!({ "prompt": "a", "response_format": { "type": "json_schema",
        "json_schema": { "name": "a", "schema": { "type": 1 } } } });
    let response = server.post("/v1/completions", &wrong.to_string());
    assert_eq!(response.status, 400);
    assert_eq!(response.json()["error"]["param"], "response_format");
    assert_eq!(metric(&server.metrics, FAILED), 0.0);
    assert!(server.stop());
}
