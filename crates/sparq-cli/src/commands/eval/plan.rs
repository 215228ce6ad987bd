//! What is to be done: the examples of all tasks, and who has not answered them yet.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use sparq::SparqError;
use sparq_eval::tasks::{self, TaskOptions};
use sparq_eval::{Contender, EvalError, Evaluation, Job, Passage, ResultsFile, TaskName};
use sparq_models::text::TextTokenizer;

/// The examples of the tasks, in the order of the command line.
pub struct Plan {
    tasks: Vec<(TaskName, Vec<Passage>)>,
}

impl Plan {
    /// Makes the examples.
    ///
    /// # Errors
    /// When a task can't be made of the options, or several tasks would read the same data file.
    pub fn new(
        names: &[TaskName],
        options: &TaskOptions,
        tokenizer: &TextTokenizer,
    ) -> Result<Self> {
        let mut tasks: Vec<(TaskName, Vec<Passage>)> = Vec::new();
        for &name in names {
            if tasks.iter().all(|(known, _)| *known != name) {
                tasks.push((name, tasks::passages(name, options, tokenizer)?));
            }
        }
        Ok(Self { tasks })
    }

    /// Refuses methods that there are none of, and warns of those that can't do with a budget and are left out there.
    ///
    /// # Errors
    /// When a name is unknown, or no method is left.
    pub fn check(&self, contenders: &[Contender], head_dim: usize) -> Result<()> {
        let mut able = false;
        for contender in contenders {
            let mut left_out = BTreeSet::new();
            for (_, passages) in &self.tasks {
                for positions in passages.iter().flat_map(positions) {
                    match contender.at(head_dim, positions) {
                        Ok(_) => able = true,
                        Err(SparqError::Budget { .. }) => drop(left_out.insert(positions)),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if let (Some(least), Some(most)) = (left_out.first(), left_out.last()) {
                tracing::warn!(
                    "{contender} is left out at {least} to {most} positions: it can't do with so few bytes"
                );
            }
        }
        match able {
            true => Ok(()),
            false => {
                bail!("--methods: expected one that can do with a budget of --budgets, found none")
            }
        }
    }

    /// Refuses a file of results in which the examples are others.
    ///
    /// # Errors
    /// When a record in the file is of other tokens or settings.
    pub fn compare(&self, evaluation: &Evaluation<'_>, results: &ResultsFile) -> Result<()> {
        for (task, passages) in &self.tasks {
            results.check(*task, passages, &|passage, question, contender| {
                evaluation.settings(passage, question, contender).ok()
            })?;
        }
        Ok(())
    }

    /// What the file of results has not yet.
    ///
    /// # Errors
    /// When the settings of a method can't be found, for another reason than its budget.
    pub fn jobs<'a>(
        &'a self,
        evaluation: &'a Evaluation<'_>,
        results: &ResultsFile,
    ) -> Result<Vec<Job<'a>>> {
        let mut jobs = Vec::new();
        for (task, passages) in &self.tasks {
            for passage in passages {
                let mut open = Vec::new();
                for question in &passage.questions {
                    let mut contenders = Vec::new();
                    for contender in &evaluation.contenders {
                        match evaluation.settings(passage, question, contender) {
                            Ok(_) if results.has(*task, question, contender) => {}
                            Ok(_) => contenders.push(contender),
                            Err(EvalError::Sparq(SparqError::Budget { .. })) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                    if !contenders.is_empty() {
                        open.push((question, contenders));
                    }
                }
                if !open.is_empty() {
                    jobs.push(Job {
                        task: *task,
                        passage,
                        open,
                    });
                }
            }
        }
        // The longest first: the last to be done is then a short one, and no thread waits long for it.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.passage.context));
        Ok(jobs)
    }
}

/// The lengths that settings are chosen for.
fn positions(passage: &Passage) -> impl Iterator<Item = usize> {
    let own = |question| {
        passage
            .context
            .unwrap_or_else(|| passage.positions(question))
    };
    passage.questions.iter().map(own)
}

/// The methods of a list with commas, in which settings have commas too: `dense,sparq:r=16,mean=never,h2o`.
pub fn methods(list: &str) -> Vec<String> {
    let mut methods: Vec<String> = Vec::new();
    for part in list.split(',').map(str::trim) {
        match methods.last_mut() {
            // A setting without a name is one more of the method before.
            Some(method) if part.contains('=') && !part.contains(':') => {
                method.push(',');
                method.push_str(part);
            }
            _ => methods.push(part.to_owned()),
        }
    }
    methods
}

/// A share, as `1/8` or `0.125`.
pub fn budget(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match text.split_once('/') {
        Some((above, below)) => number(above)
            .zip(number(below))
            .map(|(above, below)| above / below),
        None => number(text),
    };
    share
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| {
            format!("expected a share above 0 and at most 1, as 1/8 or 0.125, found {text:?}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_stay_with_their_method() {
        let list = "dense,sparq:r=16,mean=never,h2o:k=64,lm-infinite";
        let expected = ["dense", "sparq:r=16,mean=never", "h2o:k=64", "lm-infinite"];
        assert_eq!(methods(list), expected);
    }

    #[test]
    fn a_share_is_a_fraction_or_a_decimal() {
        assert_eq!(budget("1/8"), Ok(0.125));
        assert_eq!(budget("0.125"), Ok(0.125));
        assert_eq!(budget("1"), Ok(1.0));
        for wrong in ["0", "1/0", "2", "-1/8", "a/8", "", "nan"] {
            let error = budget(wrong).unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }
}
