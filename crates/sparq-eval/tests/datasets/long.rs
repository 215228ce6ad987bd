//! Published files of long-context benchmarks.

use serde_json::{Value, json};
use sparq_eval::score::Judge;
use sparq_eval::tasks::TaskOptions;
use sparq_eval::{EvalError, Passage, TaskName, Work};
use sparq_models::embedded;

use super::{Folder, column, made, message, options, prompt};

/// Returns the only example of a file, with its prompt and judge.
fn one(task: TaskName, path: &std::path::Path) -> (Passage, String, Judge, usize) {
    let passages = made(task, path).unwrap_or_else(|error| panic!("{task}: {error}"));
    let [passage] = passages.try_into().unwrap();
    let (text, work) = (prompt(&passage), passage.questions[0].work.clone());
    match work {
        Work::Answer { max_tokens, judge } => (passage, text, judge, max_tokens),
        work => panic!("{work:?}"),
    }
}

#[test]
fn ruler_lines_are_read_and_split() {
    let folder = Folder::new();
    let line = json!({
        "index": 0,
        "input": "Memorize the list.\n1. a 2. b\nQuestion: What are the 10 most common words in the above list?",
        "outputs": ["a", "b"],
        "length": 200,
        "answer_prefix": " Answer: The top 10 words are:",
    });
    let path = folder.lines("validation.jsonl", &[line]);
    let (passage, text, judge, max_tokens) = one(TaskName::RulerFile, &path);
    assert_eq!(passage.text.len(), "Memorize the list.\n1. a 2. b".len());
    assert!(
        text.ends_with("list? Answer: The top 10 words are:"),
        "{text}"
    );
    assert_eq!(judge, Judge::AllOf(vec!["a".into(), "b".into()]));
    assert_eq!(max_tokens, 120);
}

/// Makes one example of RULER's question answering at a context.
fn ruler_qa(path: &std::path::Path, context: usize) -> Result<Vec<Passage>, EvalError> {
    let options = TaskOptions {
        contexts: vec![context],
        ..options(path, 1)
    };
    TaskName::RulerQa.passages(&options, &embedded::tokenizer().unwrap())
}

#[test]
fn ruler_questions_have_their_documents() {
    let folder = Folder::new();
    let paragraph = |number: usize| {
        let qas = json!([{"id": format!("q{number}"), "question": format!("Who is {number}?"),
            "answers": [{"text": format!("person {number}"), "answer_start": 0}], "is_impossible": false}]);
        json!({"context": format!("This is person {number}."), "qas": qas})
    };
    let article = json!({"title": "A", "paragraphs": (0..6).map(paragraph).collect::<Vec<_>>()});
    let squad = json!({"version": "v2.0", "data": [article]});
    let squad = folder.write("squad.json", &squad.to_string());
    let hotpot: Vec<Value> = (0..6)
        .map(|number| {
            json!({
                "_id": format!("h{number}"), "question": format!("Who is {number}?"),
                "answer": format!("person {number}"), "type": "bridge", "supporting_facts": [],
                "context": [[format!("Title {number}"), ["This is ", format!("person {number}.")]]],
            })
        })
        .collect();
    let hotpot = folder.write("hotpotqa.json", &Value::from(hotpot).to_string());
    for path in [&squad, &hotpot] {
        let [passage] = ruler_qa(path, 2000).unwrap().try_into().unwrap();
        let (text, question) = (prompt(&passage), &passage.questions[0]);
        let number = question.detail["id"].as_str().unwrap()[1..].to_owned();
        // All documents fit.
        assert_eq!(text.matches("This is person ").count(), 6, "{text}");
        assert!(
            text.ends_with(&format!("\n\nQuestion: Who is {number}? Answer:")),
            "{text}"
        );
        let expected = Judge::AnyOf(vec![format!("person {number}")]);
        assert!(matches!(&question.work, Work::Answer { judge, .. } if *judge == expected));
        let [short] = ruler_qa(path, 480).unwrap().try_into().unwrap();
        let documents = prompt(&short).matches("This is person ").count();
        assert!((1..6).contains(&documents), "{documents}");
        assert!(prompt(&short).contains(&format!("This is person {number}.")));
    }
    let error = message(ruler_qa(&squad, 300).unwrap_err());
    assert!(
        error.contains("ruler_qa") && error.contains("found 300"),
        "{error}"
    );
}

#[test]
fn longbench_v2_asks_for_a_letter() {
    let folder = Folder::new();
    let row = json!({
        "_id": "x1", "domain": "D", "sub_domain": "S", "difficulty": "easy", "length": "short",
        "question": "Which?", "choice_A": "one", "choice_B": "two", "choice_C": "three",
        "choice_D": "four", "answer": "C", "context": " A long text. ",
    });
    let path = folder.write("data.json", &Value::from(vec![row.clone()]).to_string());
    let (passage, text, judge, _) = one(TaskName::LongbenchV2, &path);
    assert_eq!(passage.questions[0].example, "x1");
    assert!(
        text.contains("<text>\nA long text.\n</text>\n\nWhat is the correct"),
        "{text}"
    );
    assert!(
        text.ends_with("(D) four\n\nThe correct answer is ("),
        "{text}"
    );
    assert_eq!((judge.score("C) three"), judge.score("D")), (1.0, 0.0));
    let mut bad = row;
    bad["answer"] = "E".into();
    let path = folder.lines("bad.jsonl", &[bad]);
    let error = message(made(TaskName::LongbenchV2, &path).unwrap_err());
    for part in ["bad.jsonl", "line 1", "answer", "`E`", "`A`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn infinitebench_files_are_known_by_name() {
    let folder = Folder::new();
    let row = |answer: Value, options: Value| {
        let input = "The question of it?";
        json!({"id": 3, "context": "Text.", "input": input, "answer": answer, "options": options})
    };
    let none = json!([]);
    let four = json!(["f", "g", "h", "i"]);
    let cases = [
        ("passkey", json!(["71432"]), &none, " 71432.", "71433"),
        ("kv_retrieval", json!("ab-c"), &none, " \"ab-c\"", "ab-d"),
        (
            "longbook_qa_eng",
            json!(["The king", "he"]),
            &none,
            "king",
            "queen",
        ),
        ("longbook_choice_eng", json!(["g"]), &four, " B", "A"),
        ("code_debug", json!(["h", "C"]), &four, "C. h", "D"),
        (
            "longdialogue_qa_eng",
            json!(["JACK"]),
            &none,
            " Jack:",
            "Jim",
        ),
        ("math_find", json!([4.5]), &none, "4.5", "4"),
        (
            "longbook_sum_eng",
            json!("A king lives"),
            &none,
            "a king lives",
            "x",
        ),
    ];
    for (name, answer, options, right, wrong) in cases {
        let row = row(answer, options.clone());
        let path = folder.lines(&format!("{name}.jsonl"), &[row]);
        let (_, text, judge, _) = one(TaskName::Infinitebench, &path);
        assert!(text.contains("Text."), "{text}");
        assert_eq!(
            (judge.score(right), judge.score(wrong)),
            (1.0, 0.0),
            "{name}"
        );
    }
    for (name, row, part) in [
        ("other.jsonl", row(json!("x"), none.clone()), "found other"),
        (
            "code_debug.jsonl",
            row(json!("h"), none.clone()),
            "expected 4, found 0",
        ),
        (
            "code_debug2.jsonl",
            row(json!("z"), four),
            "expected one of the options",
        ),
        (
            "passkey.jsonl",
            row(json!("ten"), none),
            "expected a number",
        ),
    ] {
        let path = folder.lines(name, &[row]);
        let error = message(made(TaskName::Infinitebench, &path).unwrap_err());
        assert!(error.contains(name) && error.contains(part), "{error}");
    }
}

#[test]
fn mrcr_repeats_a_message_after_its_prefix() {
    let folder = Folder::new();
    let messages = json!([
        {"role": "user", "content": "Write a poem"}, {"role": "assistant", "content": "Roses"},
        {"role": "user", "content": "Prepend Xy to the first poem"},
    ]);
    let row = json!({
        "prompt": messages.to_string(), "answer": "XyRoses", "random_string_to_prepend": "Xy",
    });
    let schema = "message schema {
      optional binary prompt (UTF8);
      optional binary answer (UTF8);
      optional binary random_string_to_prepend (UTF8);
    }";
    let rows = [row.clone()];
    let keys = ["prompt", "answer", "random_string_to_prepend"];
    let columns = keys.map(|key| column(&rows, |row| &row[key]));
    let path = folder.parquet("2needle.parquet", schema, &columns);
    let (passage, text, judge, max_tokens) = one(TaskName::Mrcr, &path);
    assert_eq!(
        passage.text.len(),
        "User: Write a poem\n\nAssistant: Roses".len()
    );
    assert!(
        text.ends_with("User: Prepend Xy to the first poem\n\nAssistant:"),
        "{text}"
    );
    assert_eq!(max_tokens, 7 + 16);
    assert_eq!((judge.score(" XyRoses"), judge.score("Roses")), (1.0, 0.0));
    let mut bad = row;
    bad["prompt"] = "[{\"role\": \"nurse\", \"content\": \"\"}]".into();
    let path = folder.lines("bad.jsonl", &[bad]);
    let error = message(made(TaskName::Mrcr, &path).unwrap_err());
    for part in ["bad.jsonl", "row 0", "prompt", "nurse"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
