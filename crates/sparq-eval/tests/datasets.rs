//! Tasks on miniatures of the data sets, in every published format.

#[path = "datasets/long.rs"]
mod long;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use sparq_eval::score::Judge;
use sparq_eval::tasks::TaskOptions;
use sparq_eval::{EvalError, Passage, TaskName, Work};
use sparq_models::embedded;

fn options(data: &Path, examples: usize) -> TaskOptions {
    TaskOptions {
        seed: 0,
        examples,
        contexts: Vec::new(),
        needles: 1,
        generated: 1,
        depths: 1,
        text: None,
        data: Some(data.to_owned()),
        most: 8192,
    }
}

fn made(task: TaskName, data: &Path) -> Result<Vec<Passage>, EvalError> {
    task.passages(&options(data, 100), &embedded::tokenizer().unwrap())
}

fn message(error: EvalError) -> String {
    error.to_string()
}

/// Returns the prompt of an example as text.
fn prompt(passage: &Passage) -> String {
    let tokens = [passage.text.clone(), passage.questions[0].prompt.clone()].concat();
    embedded::tokenizer()
        .unwrap()
        .decode(&tokens, false)
        .unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn lines(&self, name: &str, rows: &[Value]) -> PathBuf {
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        self.write(name, &(lines.join("\n") + "\n"))
    }

    /// Writes columns, each with its values by row. A value is a text, a list of texts or a list of
    /// numbers.
    fn parquet(&self, name: &str, schema: &str, columns: &[Vec<Value>]) -> PathBuf {
        let path = self.0.path().join(name);
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder()
            .set_compression(parquet::basic::Compression::SNAPPY)
            .build();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for values in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let (mut texts, mut numbers) = (Vec::new(), Vec::new());
            let (mut definitions, mut repetitions) = (Vec::new(), Vec::new());
            for value in values {
                let list = value
                    .as_array()
                    .map_or(std::slice::from_ref(value), Vec::as_slice);
                for (index, item) in list.iter().enumerate() {
                    // Everything is optional and present: a list inside a group has definition
                    // level 4.
                    definitions.push(if value.is_array() { 4 } else { 1 });
                    repetitions.push(i16::from(index > 0));
                    match item {
                        Value::Number(number) => numbers.push(number.as_i64().unwrap() as i32),
                        text => texts.push(ByteArray::from(text.as_str().unwrap())),
                    }
                }
            }
            let levels = (Some(&definitions[..]), Some(&repetitions[..]));
            let written = match numbers.is_empty() {
                true => {
                    let column = column.typed::<ByteArrayType>();
                    column.write_batch(&texts, levels.0, levels.1)
                }
                false => {
                    let column = column.typed::<Int32Type>();
                    column.write_batch(&numbers, levels.0, levels.1)
                }
            };
            written.unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        path
    }
}

/// Returns a value of every row.
fn column(rows: &[Value], get: impl Fn(&Value) -> &Value) -> Vec<Value> {
    rows.iter().map(get).cloned().collect()
}

const ARTICLES: usize = 9;

/// Returns rows of SQuAD in the form of the hub: nine paragraphs with two questions each.
fn squad_rows() -> Vec<Value> {
    (0..2 * ARTICLES)
        .map(|row| {
            let article = row / 2;
            json!({
                "id": format!("q{row}"),
                "title": format!("Big_City_{article}"),
                "context": format!("City number {article} lies on river {article} and has a tower."),
                "question": format!("Question {row}?"),
                "answers": {"text": [format!("the long answer {row}"), format!("short {row}")], "answer_start": [3, 4]},
            })
        })
        .collect()
}

const SQUAD_SCHEMA: &str = "message schema {
  optional binary id (UTF8);
  optional binary title (UTF8);
  optional binary context (UTF8);
  optional binary question (UTF8);
  optional group answers {
    optional group text (LIST) { repeated group list { optional binary element (UTF8); } }
    optional group answer_start (LIST) { repeated group list { optional int32 element; } }
  }
}";

fn squad_files(folder: &Folder) -> Vec<PathBuf> {
    let rows = squad_rows();
    let mut columns = ["id", "title", "context", "question"]
        .map(|key| column(&rows, |row| &row[key]))
        .to_vec();
    columns.extend(["text", "answer_start"].map(|key| column(&rows, |row| &row["answers"][key])));
    let articles: Vec<Value> = rows
        .chunks(2)
        .map(|rows| {
            let entry = |row: &Value| {
                let texts = row["answers"]["text"].as_array().unwrap();
                let answers: Vec<Value> = texts.iter().map(|text| json!({"text": text, "answer_start": 3})).collect();
                json!({"id": row["id"], "question": row["question"], "answers": answers})
            };
            let paragraph = json!({"context": rows[0]["context"], "qas": rows.iter().map(entry).collect::<Vec<_>>()});
            json!({"title": rows[0]["title"], "paragraphs": [paragraph]})
        })
        .collect();
    vec![
        folder.lines("squad.jsonl", &rows),
        folder.write("squad.json", &Value::from(rows.clone()).to_string()),
        folder.write(
            "dev-v1.1.json",
            &json!({"version": "1.1", "data": articles}).to_string(),
        ),
        folder.parquet("squad.parquet", SQUAD_SCHEMA, &columns),
    ]
}

#[test]
fn squad_reads_every_format() {
    let folder = Folder::new();
    let forms: Vec<_> = squad_files(&folder)
        .iter()
        .map(|path| made(TaskName::Squad, path).unwrap())
        .collect();
    assert_eq!(forms[0].len(), 2 * ARTICLES);
    for form in &forms[1..] {
        assert_eq!(form, &forms[0]);
    }
}

#[test]
fn squad_prompt_has_eight_paragraphs_and_one_shot() {
    let folder = Folder::new();
    for passage in made(TaskName::Squad, &squad_files(&folder)[0]).unwrap() {
        let question = &passage.questions[0];
        let row: usize = question.example.strip_prefix('q').unwrap().parse().unwrap();
        let article = row / 2;
        let text = prompt(&passage);
        let lines: Vec<&str> = text.lines().collect();
        let (paragraphs, rest) = lines.split_at(8);
        let own = format!(
            "Title: Big City {article}. Background: City number {article} lies on river {article} and has a tower."
        );
        assert_eq!(paragraphs.iter().filter(|line| **line == own).count(), 1);
        for line in paragraphs {
            assert!(line.starts_with("Title: Big City "), "{line}");
            assert_eq!(
                paragraphs.iter().filter(|other| *other == line).count(),
                1,
                "{line}"
            );
        }
        // The shot is the other question on the same paragraph, with its shortest answer.
        let other = row ^ 1;
        let expected = [
            format!(
                "From what you've just read about Big City {article}, please answer the following questions."
            ),
            format!("Question: Question {other}?"),
            format!("Answer: short {other}"),
            format!("Question: Question {row}?"),
            "Answer:".into(),
        ];
        assert_eq!(rest, expected);
        let Work::Answer { max_tokens, judge } = &question.work else {
            panic!("{:?}", question.work);
        };
        assert_eq!(
            *judge,
            Judge::Answers(vec![
                format!("the long answer {row}"),
                format!("short {row}")
            ])
        );
        assert_eq!(*max_tokens, 5 + format!("the long answer {row}").len());
    }
}

#[test]
fn squad_prompt_shuffles_the_paragraphs() {
    let folder = Folder::new();
    let places: std::collections::BTreeSet<usize> = made(TaskName::Squad, &squad_files(&folder)[0])
        .unwrap()
        .iter()
        .map(|passage| {
            let row: usize = passage.questions[0].example[1..].parse().unwrap();
            let own = format!("Title: Big City {}.", row / 2);
            prompt(passage)
                .lines()
                .position(|line| line.starts_with(&own))
                .unwrap()
        })
        .collect();
    assert!(places.len() > 3, "{places:?}");
}

fn page(number: usize, length: usize) -> String {
    let sentence = format!("Page {number} goes on. ");
    sentence.chars().cycle().take(length).collect()
}

/// Returns pages of TriviaQA: too short, suitable, too long.
fn pages(number: usize) -> [String; 3] {
    [page(number, 100), page(number, 4100), page(number, 9000)]
}

#[test]
fn trivia_qa_uses_suitable_pages_in_every_format() {
    let folder = Folder::new();
    let rows: Vec<Value> = (0..3)
        .map(|row| {
            json!({
                "question_id": format!("tc_{row}"), "question": format!("Who is {row}?"), "question_source": "x",
                "entity_pages": {"filename": ["a.txt"], "wiki_context": pages(row)},
                "answer": {"aliases": [format!("Person {row}"), format!("P. {row}")], "value": "v"},
            })
        })
        .collect();
    let entries: Vec<Value> = (0..3)
        .map(|row| {
            let file = |file: i32| json!({"Filename": format!("{row}_{file}.txt"), "Title": "t"});
            let files: Vec<Value> = (0..3).map(file).collect();
            for (file, text) in pages(row).iter().enumerate() {
                folder.write(&format!("evidence/wikipedia/{row}_{file}.txt"), text);
            }
            json!({
                "QuestionId": format!("tc_{row}"), "Question": format!("Who is {row}?"), "EntityPages": files,
                "Answer": {"Aliases": [format!("Person {row}"), format!("P. {row}")], "Value": "v"},
            })
        })
        .collect();
    let schema = "message schema {
      optional binary question_id (UTF8); optional binary question (UTF8);
      optional group entity_pages {
        optional group wiki_context (LIST) { repeated group list { optional binary element (UTF8); } }
      }
      optional group answer {
        optional group aliases (LIST) { repeated group list { optional binary element (UTF8); } }
      }
    }";
    let forms = [
        folder.lines("trivia.jsonl", &rows),
        folder.write(
            "qa/wikipedia-dev.json",
            &json!({"Data": entries, "Domain": "Wikipedia"}).to_string(),
        ),
        folder.parquet(
            "trivia.parquet",
            schema,
            &[
                column(&rows, |row| &row["question_id"]),
                column(&rows, |row| &row["question"]),
                column(&rows, |row| &row["entity_pages"]["wiki_context"]),
                column(&rows, |row| &row["answer"]["aliases"]),
            ],
        ),
    ];
    let forms = forms.map(|path| made(TaskName::TriviaQa, &path).unwrap());
    assert_eq!(forms[0].len(), 3);
    assert_eq!((&forms[1], &forms[2]), (&forms[0], &forms[0]));
    for passage in &forms[0] {
        let question = &passage.questions[0];
        let (_, row) = question.example.split_once('=').unwrap();
        let row: usize = row.parse().unwrap();
        assert_eq!(
            prompt(passage),
            format!("{}\nQuestion: Who is {row}?\nAnswer:", page(row, 4100))
        );
        let Work::Answer { max_tokens, judge } = &question.work else {
            panic!("{:?}", question.work);
        };
        assert_eq!(
            *judge,
            Judge::Answers(vec![format!("Person {row}"), format!("P. {row}")])
        );
        assert_eq!(*max_tokens, 5 + "Person 0".len());
    }
}

#[test]
fn cnn_dailymail_is_scored_by_the_highlights() {
    let folder = Folder::new();
    let rows: Vec<Value> = [100, 5000, 6000, 9000]
        .iter()
        .map(|&length| {
            json!({
                "id": format!("story {length}"),
                "article": page(length, length),
                "highlights": "It goes on .",
            })
        })
        .collect();
    let columns = ["article", "highlights", "id"].map(|key| column(&rows, |row| &row[key]));
    let schema = "message schema {
      optional binary article (UTF8);
      optional binary highlights (UTF8);
      optional binary id (UTF8);
    }";
    let forms = [
        folder.lines("cnn.ndjson", &rows),
        folder.parquet("cnn.parquet", schema, &columns),
    ];
    let forms = forms.map(|path| made(TaskName::CnnDailymail, &path).unwrap());
    assert_eq!(forms[0], forms[1]);
    assert_eq!(forms[0].len(), 2);
    for passage in &forms[0] {
        let question = &passage.questions[0];
        let length = question.example.strip_prefix("story ").unwrap();
        let length = length.parse().unwrap();
        assert_eq!(
            prompt(passage),
            format!("Article: {}\nSummary:", page(length, length))
        );
        let expected = Work::Answer {
            max_tokens: "It goes on .".len(),
            judge: Judge::Summary("It goes on .".into()),
        };
        assert_eq!(question.work, expected);
    }
}

#[test]
fn examples_beyond_the_context_are_skipped() {
    let folder = Folder::new();
    let path = squad_files(&folder).remove(0);
    let most = TaskOptions {
        most: 100,
        ..options(&path, 5)
    };
    let tokenizer = embedded::tokenizer().unwrap();
    let error = message(TaskName::Squad.passages(&most, &tokenizer).unwrap_err());
    assert!(
        error.contains("100 tokens") && error.contains("found none"),
        "{error}"
    );
}

#[test]
fn invalid_files_are_refused_by_name_and_place() {
    let folder = Folder::new();
    let mut rows = squad_rows();
    rows[3].as_object_mut().unwrap().remove("question");
    let schema = "message schema {
      optional binary article (UTF8);
      optional int32 highlights;
      optional binary id (UTF8);
    }";
    let texts = || vec![json!("a"), json!("b")];
    let numbers = folder.parquet(
        "numbers.parquet",
        schema,
        &[texts(), vec![json!(1), json!(2)], texts()],
    );
    let whole = std::fs::read(&squad_files(&folder)[3]).unwrap();
    let cut = folder.0.path().join("cut.parquet");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let document = Value::from(rows.clone()).to_string();
    let title = "{\"data\": [{\"title\": 3}]}";
    let squad = [
        (folder.lines("row.jsonl", &rows), ["line 4", "question"]),
        (folder.write("row.json", &document), ["row 3", "question"]),
        (
            folder.write("text.json", title),
            ["data[0].title", "expected a string"],
        ),
        (folder.write("cut.json", "[{"), ["JSON", "EOF"]),
        (folder.write("rows.csv", ""), ["extension", ".parquet"]),
        (
            folder.write("no.parquet", "text"),
            ["parquet", "no.parquet"],
        ),
        (cut, ["cut.parquet", "parquet"]),
        (numbers.clone(), ["column title", "article, highlights, id"]),
        (
            folder.lines("few.jsonl", &rows[..2]),
            ["more than 7 paragraphs", "found 1"],
        ),
        (
            folder.0.path().join("missing.json"),
            ["missing.json", "cannot be read"],
        ),
    ];
    let cnn = [
        (numbers, ["column highlights", "found INT32"]),
        (
            folder.write("cnn.json", "{}"),
            ["expected an array", "document"],
        ),
    ];
    let tasks = [
        (TaskName::Squad, &squad[..]),
        (TaskName::CnnDailymail, &cnn),
    ];
    for (task, files) in tasks {
        for (path, parts) in files {
            let error = message(made(task, path).unwrap_err());
            let complete = parts.iter().all(|part| error.contains(part));
            assert!(complete, "{parts:?}: {error}");
        }
    }
}

#[test]
fn damaged_parquet_files_do_not_panic() {
    let folder = Folder::new();
    let whole = std::fs::read(&squad_files(&folder)[3]).unwrap();
    let path = folder.0.path().join("damaged.parquet");
    for place in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        // A changed text is valid. Everything else is an error.
        if let Err(error) = made(TaskName::Squad, &path) {
            assert!(message(error).contains("damaged.parquet"), "byte {place}");
        }
    }
}
