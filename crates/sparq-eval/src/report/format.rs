//! Names and numbers for people.

use sparq_output::numbers::percent;

use crate::{Estimate, Metric, Record, TaskName};

/// A task's name in a heading.
pub fn title(task: TaskName) -> &'static str {
    match task {
        TaskName::Repetition => "Repetition",
        TaskName::Needle => "Needles in a haystack",
        TaskName::Bpc => "Bits per character",
        TaskName::KeyValue => "Keys and values",
        TaskName::Squad => "SQuAD, one shot",
        TaskName::TriviaQa => "TriviaQA, zero shot",
        TaskName::CnnDailymail => "CNN/DailyMail summaries",
    }
}

/// What a task's scores are.
pub fn about(task: TaskName) -> &'static str {
    match task {
        TaskName::Repetition => {
            "Characters of an excerpt of the text before that are continued without an error; more is better."
        }
        TaskName::Needle => "The share of facts in a long text that are found; more is better.",
        TaskName::Bpc => "Bits that predicting a character of a text takes; less is better.",
        TaskName::KeyValue => {
            "The share of keys whose values are found among many; more is better."
        }
        TaskName::Squad | TaskName::TriviaQa => {
            "The share of questions whose answer begins with a right one; more is better."
        }
        TaskName::CnnDailymail => "ROUGE-L F of a summary, from 0 to 1; more is better.",
    }
}

/// What an axis of a metric shows.
pub fn axis(metric: Metric) -> &'static str {
    match metric {
        Metric::PrefixMatch => "share of right answers",
        Metric::Characters => "characters before the first error",
        Metric::BitsPerCharacter => "bits per character",
        Metric::RougeL => "ROUGE-L F",
    }
}

/// What an axis of differences of a metric shows.
pub fn difference_axis(metric: Metric) -> &'static str {
    match metric {
        Metric::PrefixMatch => "share of right answers, less dense",
        Metric::Characters => "characters before the first error, less dense",
        Metric::BitsPerCharacter => "bits per character, less dense (left is better)",
        Metric::RougeL => "ROUGE-L F, less dense",
    }
}

/// Digits behind the point that a metric is told with.
pub fn digits(metric: Metric) -> usize {
    match metric {
        Metric::Characters => 1,
        Metric::PrefixMatch | Metric::RougeL | Metric::BitsPerCharacter => 3,
    }
}

/// A mean and its standard error: `0.750 ± 0.250`.
pub fn estimate(estimate: &Estimate, metric: Metric, signed: bool) -> String {
    let digits = digits(metric);
    let mean = match signed {
        // No difference has no sign, also where it is -0.
        true if estimate.mean == 0.0 => format!("{:.digits$}", 0.0),
        true => format!("{:+.digits$}", estimate.mean),
        false => format!("{:.digits$}", estimate.mean),
    };
    match estimate.standard_error {
        Some(error) => format!("{mean} ± {error:.digits$}"),
        None => mean,
    }
}

/// A share of dense attention's bytes: `1/8`, or in per cent where it is no such part.
pub fn budget(share: f64) -> String {
    let parts = 1.0 / share;
    match (parts - parts.round()).abs() < 1e-6 * parts {
        true => format!("1/{parts:.0}"),
        false => percent(share),
    }
}

/// The same records as if all were of one context.
pub fn pooled(records: &[Record]) -> Vec<Record> {
    let pooled = records.iter().cloned().map(|record| Record {
        context: None,
        ..record
    });
    pooled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [budget(0.125), budget(0.3), budget(1.0)],
            ["1/8", "30.0%", "1/1"]
        );
        let of = |mean, standard_error| Estimate {
            n: 2,
            mean,
            standard_error,
        };
        assert_eq!(
            estimate(&of(0.75, Some(0.25)), Metric::PrefixMatch, false),
            "0.750 ± 0.250"
        );
        assert_eq!(estimate(&of(0.75, None), Metric::RougeL, true), "+0.750");
        assert_eq!(
            estimate(&of(-0.0, Some(0.0)), Metric::Characters, true),
            "0.0 ± 0.0"
        );
        assert_eq!(
            estimate(&of(-12.25, None), Metric::Characters, true),
            "-12.2"
        );
    }
}
