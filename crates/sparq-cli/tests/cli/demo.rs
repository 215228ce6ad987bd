//! `sparq demo` on a short context: the fields of its document and their consistency.

use serde_json::json;

use crate::support::{contains, document, has_fields, stdout};

const SHORT: &str = "demo --context 1024 --needles 2 --seed 1";

#[test]
fn document_is_complete_and_consistent() {
    let demo = document(SHORT);
    has_fields(
        &demo,
        &json!({"seed": 1, "context": 1024, "device": "flex"}),
    );
    let methods = demo["methods"].as_array().unwrap();
    let names: Vec<_> = methods.iter().map(|method| &method["method"]).collect();
    assert_eq!(names, ["dense", "sparq"]);
    for method in methods {
        let answers = method["answers"].as_array().unwrap();
        assert_eq!(answers.len(), 2);
        for answer in answers {
            let expected = format!("{}.", answer["code"].as_str().unwrap());
            assert_eq!(answer["right"], answer["answer"] == expected, "{answer}");
            assert_eq!(answer["right"], true, "{answer}");
        }
        has_fields(method, &json!({"questions": 2, "right": 2}));
        assert!(method["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    let share = |index: usize| methods[index]["share_of_dense"].as_f64().unwrap();
    let bytes = |index: usize| methods[index]["cache_bytes_per_token"].as_f64().unwrap();
    assert_eq!(share(0), 1.0);
    assert!(share(1) < 0.5, "{}", share(1));
    // Both methods took equally many steps, because both answered correctly.
    assert!((bytes(1) / bytes(0) - share(1)).abs() < 1e-9);
    assert!(demo["prefill"]["tokens_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn k_beyond_the_context_is_dense_attention() {
    let demo = document("demo --context 1024 --needles 1 --top-k 2048");
    assert_eq!(demo["methods"][1]["share_of_dense"], 1.0);
    assert_eq!(demo["methods"][1]["answers"], demo["methods"][0]["answers"]);
}

#[test]
fn text_output_is_plain_outside_a_terminal() {
    let text = stdout(SHORT);
    assert!(!text.contains(['\x1b', '\r']), "{text}");
    contains(
        &text,
        &["dense", "sparq", "right", "2 of 2", "share of dense"],
    );
}
