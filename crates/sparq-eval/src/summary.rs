//! The mean scores of records by task, context, method and budget.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Better, Estimate, Metric, Protocol, Record, TaskName};

/// The mean scores of one method at one budget in one task and context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummaryRow {
    /// The model.
    pub model: String,
    /// The attention that read the questions.
    pub question: Protocol,
    /// The task.
    pub task: TaskName,
    /// The number of positions the examples fill. `None` if the data determine the length.
    pub context: Option<usize>,
    /// The method.
    pub method: String,
    /// The share of dense attention's bytes that the settings were chosen for. `None` for dense.
    pub budget: Option<f64>,
    /// The share of dense attention's bytes that the settings move, averaged over the examples.
    pub transfer: f64,
    /// The quantity that the score measures.
    pub metric: Metric,
    /// The direction in which the score improves.
    pub better: Better,
    /// The score.
    pub score: Estimate,
    /// The score minus that of dense attention, over the examples that both finished. `None` if
    /// there are none.
    pub difference: Option<Estimate>,
}

/// The method that the others are compared with.
pub const REFERENCE: &str = "dense";

/// The key of the records that are averaged together.
type Group<'a> = (
    &'a str,
    Protocol,
    TaskName,
    Option<usize>,
    &'a str,
    Option<u64>,
);

/// The key of an example, whose records are compared.
type Example<'a> = (&'a str, Protocol, TaskName, u64, &'a str);

/// Returns the key of the example of a record.
fn example(record: &Record) -> Example<'_> {
    let Record { model, example, .. } = record;
    (model, record.question, record.task, record.seed, example)
}

/// Averages records, those of each protocol apart. Rows are sorted by model, protocol, task and
/// context, then from large budgets to small ones, with methods in order of appearance.
pub fn summarize(records: &[Record]) -> Vec<SummaryRow> {
    let mut reference: HashMap<Example<'_>, f64> = HashMap::new();
    let mut groups: Vec<(Group<'_>, Vec<&Record>)> = Vec::new();
    let mut place: HashMap<Group<'_>, usize> = HashMap::new();
    for record in records {
        if record.method == REFERENCE {
            reference.insert(example(record), record.score);
        }
        let group = (
            record.model.as_str(),
            record.question,
            record.task,
            record.context,
            record.method.as_str(),
            record.budget.map(f64::to_bits),
        );
        let index = *place.entry(group).or_insert_with(|| {
            groups.push((group, Vec::new()));
            groups.len() - 1
        });
        groups[index].1.push(record);
    }
    let mut rows: Vec<SummaryRow> = groups
        .iter()
        .filter_map(|(_, records)| row(records, &reference))
        .collect();
    // Stable: rows with equal keys keep the order of their first records.
    rows.sort_by(|a, b| {
        let key = |row: &SummaryRow| (row.model.clone(), row.question, row.task, row.context);
        let budget = |row: &SummaryRow| row.budget.unwrap_or(f64::INFINITY);
        key(a).cmp(&key(b)).then(budget(b).total_cmp(&budget(a)))
    });
    rows
}

fn row(records: &[&Record], reference: &HashMap<Example<'_>, f64>) -> Option<SummaryRow> {
    let first = records.first()?;
    let pairs = records
        .iter()
        .filter_map(|record| Some((record.score, *reference.get(&example(record))?)));
    Some(SummaryRow {
        model: first.model.clone(),
        question: first.question,
        task: first.task,
        context: first.context,
        method: first.method.clone(),
        budget: first.budget,
        transfer: Estimate::of(records.iter().map(|record| record.transfer))?.mean,
        metric: first.metric,
        better: first.better,
        score: Estimate::of(records.iter().map(|record| record.score))?,
        difference: Estimate::of_differences(pairs),
    })
}

#[cfg(test)]
mod tests {
    use sparq::SparqConfig;

    use super::*;

    fn record(example: usize, method: &str, budget: Option<f64>, score: f64) -> Record {
        let dense = Record::dense(TaskName::Bpc);
        Record {
            example: format!("context=1024 text={example}"),
            method: method.into(),
            settings: match budget {
                Some(_) => SparqConfig::new(8, 64).into(),
                None => dense.settings,
            },
            budget,
            transfer: budget.unwrap_or(1.0),
            score,
            ..dense
        }
    }

    #[test]
    fn differences_are_of_the_same_examples() {
        let records = [
            record(0, "sparq", Some(0.125), 3.5),
            record(0, "sparq", Some(0.25), 3.25),
            record(0, "dense", None, 3.0),
            record(1, "dense", None, 5.0),
            record(1, "sparq", Some(0.125), 6.0),
            // Dense attention did not finish this one.
            record(2, "sparq", Some(0.125), 100.0),
        ];
        let rows = summarize(&records);
        let names: Vec<_> = rows
            .iter()
            .map(|row| (row.method.as_str(), row.budget, row.score.n))
            .collect();
        let expected = [
            ("dense", None, 2),
            ("sparq", Some(0.25), 1),
            ("sparq", Some(0.125), 3),
        ];
        assert_eq!(names, expected);
        assert_eq!(rows[0].difference.unwrap().mean, 0.0);
        let difference = rows[2].difference.unwrap();
        assert_eq!((difference.n, difference.mean), (2, 0.75));
        assert_eq!(difference.standard_error, Some(0.25));
    }

    #[test]
    fn seeds_have_examples_of_their_own() {
        let other = |record: Record| Record { seed: 1, ..record };
        let rows = summarize(&[
            record(0, "dense", None, 3.0),
            record(0, "sparq", Some(0.125), 3.5),
            other(record(0, "dense", None, 5.0)),
            other(record(0, "sparq", Some(0.125), 5.25)),
        ]);
        let difference = rows[1].difference.unwrap();
        assert_eq!((rows[1].score.n, difference.mean), (2, 0.375));
    }

    #[test]
    fn protocols_are_apart() {
        let dense_question = Record {
            question: Protocol::Dense,
            ..record(0, "sparq", Some(0.125), 9.0)
        };
        let rows = summarize(&[
            record(0, "dense", None, 3.0),
            record(0, "sparq", Some(0.125), 3.5),
            dense_question,
        ]);
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row.question,
                    row.score.n,
                    row.difference.map(|row| row.mean),
                )
            })
            .collect();
        let expected = [
            (Protocol::Method, 1, Some(0.0)),
            (Protocol::Method, 1, Some(0.5)),
            (Protocol::Dense, 1, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn differences_need_dense_attention() {
        let rows = summarize(&[record(0, "sparq", Some(0.125), 3.5)]);
        assert_eq!((rows.len(), rows[0].difference), (1, None));
    }
}
