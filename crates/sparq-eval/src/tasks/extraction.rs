//! Structured extraction: a table hidden in prose, one row of which is to be written as JSON.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use serde_json::Map;
use sparq_models::text::TextTokenizer;

use super::{Task, TaskOptions};
use crate::filler::Filler;
use crate::prose::PLAYS;
use crate::ruler::words::Token;
use crate::sample::{self, Sample};
use crate::score::Judge;
use crate::{EvalError, Metric, Passage, TaskName, Work};

/// The rows of a table.
const ROWS: usize = 12;

const CITIES: [&str; 16] = [
    "Athens", "Berlin", "Boston", "Cairo", "Dublin", "Geneva", "Lisbon", "London", "Madrid",
    "Milan", "Oslo", "Paris", "Prague", "Rome", "Vienna", "Warsaw",
];

pub(super) const TASK: Task = Task {
    title: "Structured extraction",
    about: "The share of the fields of a row that are written correctly; more is better.",
    metric: Metric::FieldMatch,
    passages,
};

/// A row of the table.
struct Row {
    name: String,
    city: &'static str,
    year: u32,
    stock: u32,
}

impl Row {
    fn draw(rng: &mut SmallRng, name: String) -> Self {
        Self {
            name,
            city: CITIES.choose(rng).expect("the list is not empty"),
            year: rng.random_range(1900..2000),
            stock: rng.random_range(100..1000),
        }
    }

    fn line(&self) -> String {
        let Self {
            name,
            city,
            year,
            stock,
        } = self;
        format!("| {name} | {city} | {year} | {stock} |")
    }

    fn json(&self) -> String {
        format!(
            "{}\"city\": \"{}\", \"year\": {}, \"stock\": {}}}",
            self.begun(),
            self.city,
            self.year,
            self.stock
        )
    }

    /// Returns the beginning of the JSON object up to the unknown fields.
    fn begun(&self) -> String {
        format!("{{\"name\": \"{}\", ", self.name)
    }

    fn fields(&self) -> Vec<(String, String)> {
        let fields = [
            ("city", self.city.to_owned()),
            ("year", self.year.to_string()),
            ("stock", self.stock.to_string()),
        ];
        fields.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

fn passages(options: &TaskOptions, tokenizer: &TextTokenizer) -> Result<Vec<Passage>, EvalError> {
    let filler = Filler::new(options.text.as_deref(), PLAYS)?;
    // The longest object takes this many tokens, and a few are to spare.
    let longest = Row {
        name: "patient-mountain".into(),
        city: "Warsaw",
        year: 1999,
        stock: 999,
    };
    let max_tokens = tokenizer.encode(&longest.json(), false)?.len();
    let task = TaskName::Extraction;
    sample::passages(task, options, tokenizer, 0, &|_, rng, size| {
        Ok(of_size(&filler, rng, size, max_tokens))
    })
}

/// Makes a sample with `size` sentences of prose, between two of which the table stands.
fn of_size(filler: &Filler, rng: &mut SmallRng, size: usize, max_tokens: usize) -> Sample {
    let mut rows: Vec<Row> = Vec::new();
    while rows.len() < ROWS {
        let name = Token::Words.draw(rng);
        if rows.iter().all(|row| row.name != name) {
            rows.push(Row::draw(rng, name));
        }
    }
    let pair = rand::seq::index::sample(rng, ROWS, 2);
    let (shot, asked) = (&rows[pair.index(0)], &rows[pair.index(1)]);
    let depth: f64 = rng.random();
    let prose = filler.draw(rng, size);
    let place = (depth * size as f64) as usize;
    let lines: Vec<String> = rows.iter().map(Row::line).collect();
    let begun = asked.begun();
    Sample {
        text: format!(
            "A table of items is hidden in the following text.\n\n{}\n\n| name | city | year | \
             stock |\n|---|---|---|---|\n{}\n\n{}",
            prose[..place].join(" "),
            lines.join("\n"),
            prose[place..].join(" ")
        ),
        question: format!(
            "\n\nWrite rows of the table as JSON objects.\nThe row of {}: {}\nThe row of {}: {}",
            shot.name,
            shot.json(),
            asked.name,
            begun.trim_end()
        ),
        work: Work::Answer {
            max_tokens,
            judge: Judge::Fields {
                fields: asked.fields(),
                begun,
            },
        },
        detail: Map::from_iter([("depth".to_owned(), depth.into())]),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn rows_are_right_answers_to_their_questions() {
        let filler = Filler::new(None, PLAYS).unwrap();
        for seed in 0..20 {
            let sample = of_size(&filler, &mut SmallRng::seed_from_u64(seed), 60, 50);
            let Work::Answer { judge, .. } = &sample.work else {
                panic!("{:?}", sample.work);
            };
            let Judge::Fields { begun, fields } = judge else {
                panic!("{judge:?}");
            };
            let name = begun.split('"').nth(3).unwrap();
            let values: Vec<&str> = fields.iter().map(|(_, value)| value.as_str()).collect();
            let line = format!("\n| {name} | {} |\n", values.join(" | "));
            assert_eq!(sample.text.matches(&line).count(), 1, "{line}");
            let [city, year, stock] = values[..] else {
                panic!("{values:?}");
            };
            let answer = format!(" \"city\": \"{city}\", \"year\": {year}, \"stock\": {stock}}}");
            assert_eq!(judge.score(&answer), 1.0, "{answer}");
            assert!(judge.is_settled(&answer) && !judge.is_settled(" \"city\": \"R"));
            // The example in the question shows another row.
            assert!(judge.score(&sample.question) < 1.0);
        }
    }
}
