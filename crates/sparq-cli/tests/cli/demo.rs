//! `sparq demo` on a short context: the fields of its document and their consistency.

use crate::support::{document, sparq, words};

const SHORT: [&str; 7] = ["demo", "--context", "1024", "--needles", "2", "--seed", "1"];

#[test]
fn document_is_complete_and_consistent() {
    let demo = document(&SHORT);
    assert_eq!(
        (&demo["seed"], &demo["context"], &demo["device"]),
        (&1.into(), &1024.into(), &"flex".into())
    );
    let methods = demo["methods"].as_array().unwrap();
    assert_eq!(
        methods
            .iter()
            .map(|method| method["method"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["dense", "sparq"]
    );
    for method in methods {
        let answers = method["answers"].as_array().unwrap();
        assert_eq!((answers.len(), &method["questions"]), (2, &2.into()));
        for answer in answers {
            let right = answer["answer"].as_str().unwrap()
                == format!("{}.", answer["code"].as_str().unwrap());
            assert_eq!(answer["right"], right, "{answer}");
        }
        let right = answers
            .iter()
            .filter(|answer| answer["right"] == true)
            .count();
        assert_eq!((right, &method["right"]), (2, &2.into()), "{method}");
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
    let demo = document(&words("demo --context 1024 --needles 1 --top-k 2048"));
    assert_eq!(demo["methods"][1]["share_of_dense"], 1.0);
    assert_eq!(demo["methods"][1]["answers"], demo["methods"][0]["answers"]);
}

#[test]
fn text_output_is_plain_outside_a_terminal() {
    let output = sparq().args(SHORT).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains(['\x1b', '\r']), "{text}");
    for part in ["dense", "sparq", "right", "2 of 2", "share of dense"] {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}
