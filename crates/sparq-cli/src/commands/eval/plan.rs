//! [`Plan`]: the examples of all tasks, and the methods that have to answer them.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use sparq::SparqError;
use sparq_eval::tasks::TaskOptions;
use sparq_eval::{BudgetedMethod, EvalError, Evaluation, Job, Passage, ResultsFile, TaskName};
use sparq_models::text::TextTokenizer;

use super::CACHE_BYTES;
use crate::model::Description;

/// The examples of the tasks in the order of the command line.
pub struct Plan {
    tasks: Vec<(TaskName, Vec<Passage>)>,
}

impl Plan {
    /// Makes the examples.
    pub fn new(
        names: &[TaskName],
        options: &TaskOptions,
        tokenizer: &TextTokenizer,
    ) -> Result<Self> {
        let mut tasks: Vec<(TaskName, Vec<Passage>)> = Vec::new();
        for &name in names {
            if tasks.iter().all(|(known, _)| *known != name) {
                tasks.push((name, name.passages(options, tokenizer)?));
            }
        }
        Ok(Self { tasks })
    }

    /// Checks the names of methods. Warns of methods that cannot keep a budget and are left out
    /// there.
    ///
    /// # Errors
    /// If a name is unknown or no method can keep its budget.
    pub fn check(&self, methods: &[BudgetedMethod], model: &Description) -> Result<()> {
        let shape = &model.cache_shape(CACHE_BYTES);
        let mut able = false;
        for method in methods {
            let mut left_out = BTreeSet::new();
            for (_, passages) in &self.tasks {
                for positions in passages.iter().flat_map(positions) {
                    match method.at(shape, positions) {
                        Ok(method) => {
                            model.check_anchors(&method)?;
                            able = true;
                        }
                        Err(SparqError::Budget { .. }) => {
                            left_out.insert(positions);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if let (Some(least), Some(most)) = (left_out.first(), left_out.last()) {
                let at = match least == most {
                    true => least.to_string(),
                    false => format!("{least} to {most}"),
                };
                tracing::warn!(
                    "{method} is left out at {at} positions: it cannot move so few bytes"
                );
            }
        }
        match able {
            true => Ok(()),
            false => {
                bail!("--methods: expected one that can keep a budget of --budgets, found none")
            }
        }
    }

    /// Checks that the records of a results file are of the same examples and settings.
    ///
    /// # Errors
    /// If a record has other tokens or settings.
    pub fn compare(&self, evaluation: &Evaluation<'_>, results: &ResultsFile) -> Result<()> {
        for (task, passages) in &self.tasks {
            results.check(*task, passages, &|passage, question, method| {
                evaluation.settings(passage, question, method).ok()
            })?;
        }
        Ok(())
    }

    /// Returns the work that the results file does not have yet.
    ///
    /// # Errors
    /// If a method is invalid for another reason than its budget.
    pub fn jobs<'a>(
        &'a self,
        evaluation: &'a Evaluation<'_>,
        results: &ResultsFile,
    ) -> Result<Vec<Job<'a>>> {
        let mut jobs = Vec::new();
        for (task, passages) in &self.tasks {
            for passage in passages {
                let mut unanswered = Vec::new();
                for question in &passage.questions {
                    let mut methods = Vec::new();
                    for method in &evaluation.methods {
                        match evaluation.settings(passage, question, method) {
                            Ok(_) if results.has(*task, question, method) => {}
                            Ok(_) => methods.push(method),
                            Err(EvalError::Sparq(SparqError::Budget { .. })) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                    if !methods.is_empty() {
                        unanswered.push((question, methods));
                    }
                }
                if !unanswered.is_empty() {
                    jobs.push(Job {
                        task: *task,
                        passage,
                        unanswered,
                    });
                }
            }
        }
        // The longest first, so that no thread waits long for the last one.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.passage.context));
        Ok(jobs)
    }
}

/// Returns the numbers of positions that settings are chosen for.
fn positions(passage: &Passage) -> impl Iterator<Item = usize> {
    let questions = passage.questions.iter();
    questions.map(|question| passage.budget_positions(question))
}

/// Splits a list of methods whose settings contain commas too: `dense,sparq:r=16,mean=never,h2o`.
pub fn methods(list: &str) -> Vec<String> {
    let mut methods: Vec<String> = Vec::new();
    for part in list.split(',').map(str::trim) {
        match methods.last_mut() {
            // A setting without a method name belongs to the method before.
            Some(method) if part.contains('=') && !part.contains(':') => {
                method.push(',');
                method.push_str(part);
            }
            _ => methods.push(part.to_owned()),
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_keep_their_settings() {
        let list = "dense,sparq:r=16,mean=never,h2o:k=64,lm-infinite";
        let expected = ["dense", "sparq:r=16,mean=never", "h2o:k=64", "lm-infinite"];
        assert_eq!(methods(list), expected);
    }
}
