//! [`BudgetedMethod`]: a method and the share of dense attention's bytes that it may move.

use std::fmt;

use sparq::cost::CacheShape;
use sparq::methods::Budget;
use sparq::{Method, SparqError, Transfers};

use crate::summary::REFERENCE;

/// The name of lossless decoding. Settings after it are those of the draft.
const LOSSLESS: &str = "lossless";

/// The method of drafts, if no other settings are given.
const DRAFT: &str = "sparq-4bit";

/// A method at a budget. The settings follow from the budget and the length of the example.
///
/// A method whose words give both r and k has no budget: it moves the bytes of its settings.
///
/// The method `lossless` has the answers of dense attention. Its budget and its settings are those
/// of the drafts, whose acceptance is a detail of its records.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetedMethod {
    /// The method, spelled as on the command line.
    pub method: String,
    /// The share of dense attention's bytes. `None` for dense, and for given settings.
    pub budget: Option<f64>,
}

impl BudgetedMethod {
    /// Returns every method at every budget, and once dense and methods with given settings.
    pub fn all(methods: &[String], budgets: &[f64]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for method in methods {
            let budgets: Vec<Option<f64>> = match method == REFERENCE || is_given(method) {
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

    /// Returns the method with its settings for the cache of a model and a number of positions.
    ///
    /// # Errors
    /// If the method is unknown or cannot keep its budget.
    pub fn at(&self, shape: &CacheShape, positions: usize) -> Result<Method, SparqError> {
        let method: Method = match self.draft() {
            Some(settings) => format!("{DRAFT}{settings}").parse()?,
            None => self.method.parse()?,
        };
        match self.budget {
            Some(budget) => {
                let budget = Budget::new(shape.head_dim, positions, budget)?;
                method.at_budget(&budget.with_layers(shape.layers))
            }
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
pub(crate) fn transfer_share(method: &Method, shape: &CacheShape, positions: usize) -> f64 {
    method.transfers(shape, positions).bytes() / Transfers::dense(shape, positions).bytes()
}

/// Returns whether the words of a method give both r and k.
fn is_given(method: &str) -> bool {
    let (_, settings) = method.split_once(':').unwrap_or_default();
    let keys = settings
        .split(',')
        .filter_map(|setting| setting.split_once('='));
    let keys: Vec<&str> = keys.map(|(key, _)| key).collect();
    ["r", "k"].iter().all(|key| keys.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape {
        head_dim: 64,
        kv_heads: 90,
        layers: 30,
        element_bytes: 2,
    };

    #[test]
    fn given_settings_have_no_budget() {
        let methods = [
            "dense",
            "sparq-4bit:k=64",
            "sparq-4bit:anchors=10,r=16,k=64",
        ];
        let all = BudgetedMethod::all(&methods.map(str::to_owned), &[0.125, 0.0625]);
        let budgets: Vec<_> = all.iter().map(|method| method.budget).collect();
        assert_eq!(budgets, [None, Some(0.125), Some(0.0625), None]);
        let [shared, own] =
            ["sparq-4bit:anchors=10,r=16,k=64", "sparq-4bit:r=16,k=64"].map(|method| {
                let method = method.to_owned();
                let method = BudgetedMethod {
                    method,
                    budget: None,
                };
                transfer_share(&method.at(&SHAPE, 4096).unwrap(), &SHAPE, 4096)
            });
        // Per head: 4096 x 16 codes of half a byte in a third of the layers.
        let codes = 4096.0 * 16.0 / 2.0;
        let dense = (2.0 * 4096.0 + 2.0) * 64.0 * 2.0;
        let sums = 2.0 * 64.0 * 2.0 - 64.0 * 4.0;
        let saved = own - shared;
        assert!(
            (saved * 1.5 - (codes + sums) / dense).abs() < 1e-9,
            "{saved}"
        );
    }

    #[test]
    fn budgets_count_all_layers() {
        let at = |method: &str| {
            let method = method.to_owned();
            let budget = Some(1.0 / 16.0);
            let method = BudgetedMethod { method, budget }.at(&SHAPE, 4096).unwrap();
            let share = transfer_share(&method, &SHAPE, 4096);
            assert!(
                share <= 1.0 / 16.0 && share > 0.9 / 16.0,
                "{method} {share}"
            );
            match method {
                Method::Sparq(config) => config.top_k + config.rank,
                _ => unreachable!(),
            }
        };
        assert!(at("sparq-4bit:anchors=10") > at("sparq-4bit"));
    }

    #[test]
    fn lossless_names_the_settings_of_its_draft() {
        let at = |method: &str, budget| {
            let method = method.to_owned();
            BudgetedMethod { method, budget }.at(&SHAPE, 4096)
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
