//! [`BudgetedMethod`]: a method and the share of dense attention's bytes that it may move.

use std::fmt;

use sparq::cost::CacheShape;
use sparq::{Method, SparqError, Transfers};

use crate::summary::REFERENCE;

/// The name of lossless decoding. Settings after it are those of the draft.
const LOSSLESS: &str = "lossless";

/// The method of drafts, if no other settings are given.
const DRAFT: &str = "sparq-4bit";

/// A method at a budget. The settings follow from the budget and the length of the example.
///
/// The method `lossless` has the answers of dense attention. Its budget and its settings are those
/// of the drafts, whose acceptance is a detail of its records.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetedMethod {
    /// The method, spelled as on the command line.
    pub method: String,
    /// The share of dense attention's bytes. `None` for dense.
    pub budget: Option<f64>,
}

impl BudgetedMethod {
    /// Returns every method at every budget, and dense once.
    pub fn all(methods: &[String], budgets: &[f64]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for method in methods {
            let budgets: Vec<Option<f64>> = match method == REFERENCE {
                true => vec![None],
                false => budgets.iter().copied().map(Some).collect(),
            };
            for budget in budgets {
                let method = method.clone();
                let budgeted = Self { method, budget };
                if !all.contains(&budgeted) {
                    all.push(budgeted);
                }
            }
        }
        all
    }

    /// Returns whether the method only drafts tokens that dense attention verifies.
    pub fn is_lossless(&self) -> bool {
        self.draft().is_some()
    }

    /// Returns the settings after the name of lossless decoding.
    fn draft(&self) -> Option<&str> {
        let settings = self.method.strip_prefix(LOSSLESS)?;
        (settings.is_empty() || settings.starts_with(':')).then_some(settings)
    }

    /// Returns the method with its settings for a model and a number of positions.
    ///
    /// # Errors
    /// If the method is unknown or cannot keep its budget.
    pub fn at(&self, head_dim: usize, positions: usize) -> Result<Method, SparqError> {
        let method: Method = match self.draft() {
            Some(settings) => format!("{DRAFT}{settings}").parse()?,
            None => self.method.parse()?,
        };
        match self.budget {
            Some(budget) => method.at_budget(head_dim, positions, budget),
            None => Ok(method),
        }
    }
}

impl fmt::Display for BudgetedMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.budget {
            Some(budget) => write!(f, "{} at 1/{}", self.method, 1.0 / budget),
            None => f.write_str(&self.method),
        }
    }
}

/// Returns the share of dense attention's bytes that a step moves at `positions` of a 16-bit cache.
pub(crate) fn transfer_share(method: &Method, head_dim: usize, positions: usize) -> f64 {
    let shape = CacheShape {
        head_dim,
        kv_heads: 1,
        element_bytes: 2,
    };
    method.transfers(&shape, positions).bytes() / Transfers::dense(&shape, positions).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lossless_names_the_settings_of_its_draft() {
        let at = |method: &str, budget| {
            let method = method.to_owned();
            BudgetedMethod { method, budget }.at(64, 4096)
        };
        let same = [
            ("lossless", "sparq-4bit"),
            ("lossless:r=8,k=40", "sparq-4bit:r=8,k=40"),
        ];
        for (lossless, draft) in same {
            assert_eq!(at(lossless, None).unwrap(), at(draft, None).unwrap());
            assert_eq!(
                at(lossless, Some(0.1)).unwrap(),
                at(draft, Some(0.1)).unwrap()
            );
        }
        assert!(at("losslessly", None).is_err());
    }
}
