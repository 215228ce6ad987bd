//! Methods by name: for command lines and reports.

use std::fmt;
use std::str::FromStr;

use super::Method;
use super::baselines::{
    Directions, FlexGen, H2o, Hybrid, KeyPrecision, LmInfinite, Oracle, Projection, Quest,
    SparqVariant, Temperature,
};
use super::budget::Budget;
use crate::{Sketch, SparqConfig, SparqError};

/// The paper's k.
const TOP_K: usize = 128;
/// The paper's r for a head_dim of 128.
const RANK: usize = 32;

/// Every name with the settings that it stands for where none are given.
fn table() -> Vec<(&'static str, Method)> {
    let sparq = |sketch| SparqConfig::new(RANK, TOP_K).with_sketch(sketch);
    let projection = |directions| Projection::new(directions, RANK, TOP_K).into();
    let variant = SparqVariant::new(RANK, TOP_K);
    let at = |temperature| variant.with_temperature(temperature);
    let two_stage = SparqVariant::new(RANK / 2, TOP_K).with_second_rank(Some(2 * RANK));
    let two_stage = two_stage.with_keys(KeyPrecision::Bits4);
    vec![
        ("dense", Method::DENSE),
        ("sparq", sparq(Sketch::Full).into()),
        ("sparq-8bit", sparq(Sketch::Bits8).into()),
        ("sparq-4bit", sparq(Sketch::Bits4).into()),
        ("h2o", H2o::new(TOP_K).into()),
        ("lm-infinite", LmInfinite::new(TOP_K).into()),
        ("flexgen", FlexGen { top_k: TOP_K }.into()),
        ("oracle", Oracle { top_k: TOP_K }.into()),
        ("quest", Quest::new(TOP_K).into()),
        ("hybrid", Hybrid::new(RANK, TOP_K).into()),
        ("random-projection", projection(Directions::Random)),
        ("low-rank", projection(Directions::Principal)),
        ("sparq-variant", variant.into()),
        ("sparq-3bit", variant.with_keys(KeyPrecision::Bits3).into()),
        ("sparq-2bit", variant.with_keys(KeyPrecision::Bits2).into()),
        ("sparq-two-stage", two_stage.into()),
        ("sparq-sqrt-d", at(Temperature::SqrtHeadDim).into()),
        ("sparq-sqrt-r", at(Temperature::SqrtRank).into()),
    ]
}

impl Method {
    /// The names that [`Method::named`] and [`Method::for_budget`] know. [`Auto`](super::Auto) is not among them: it is a choice between two of them.
    pub fn names() -> Vec<&'static str> {
        table().into_iter().map(|(name, _)| name).collect()
    }

    /// The method of this name, with the paper's k = 128 and, for head_dim 128, r = 32.
    ///
    /// # Errors
    /// [`SparqError::Value`], with all names, if it is none of them.
    pub fn named(name: &str) -> Result<Self, SparqError> {
        let table = table();
        let found = table.iter().find(|(known, _)| *known == name);
        found.map(|&(_, method)| method).ok_or_else(|| {
            let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
            value("method", format!("one of {}", names.join(", ")), name)
        })
    }

    /// The method of this name that moves at most `ratio` of the bytes of dense attention at `seq_len` positions of a 16-bit cache; see [`Method::at_budget`].
    ///
    /// ```
    /// use sparq::{CacheShape, Method, Transfers};
    ///
    /// let shape = CacheShape { head_dim: 64, kv_heads: 3, element_bytes: 2 };
    /// let dense = Transfers::dense(&shape, 4096).bytes();
    /// for name in Method::names() {
    ///     match Method::for_budget(name, 64, 4096, 1.0 / 8.0) {
    ///         Ok(method) => assert!(method.transfers(&shape, 4096).bytes() <= dense / 8.0, "{method}"),
    ///         // These read every key.
    ///         Err(_) => assert!(["dense", "flexgen"].contains(&name), "{name}"),
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`SparqError::Value`] for an unknown name, else as [`Method::at_budget`].
    pub fn for_budget(
        name: &str,
        head_dim: usize,
        seq_len: usize,
        ratio: f64,
    ) -> Result<Self, SparqError> {
        Self::named(name)?.at_budget(head_dim, seq_len, ratio)
    }

    /// This method with the sizes that move at most `ratio` of the bytes of dense attention at `seq_len` positions of a 16-bit cache; what is no size is kept.
    ///
    /// # Errors
    /// [`SparqError::Budget`] where the method can't get by on that, or `ratio` is not within 0 (exclusive) and 1.
    pub fn at_budget(
        &self,
        head_dim: usize,
        seq_len: usize,
        ratio: f64,
    ) -> Result<Self, SparqError> {
        let budget = Budget::new(head_dim, seq_len, ratio)?;
        self.strategy().at_budget(&budget)
    }
}

/// The name and all settings, as [`Method::from_str`] reads them.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copy = *self;
        f.write_str(self.name())?;
        for (index, (key, value)) in copy.strategy_mut().settings().into_iter().enumerate() {
            let separator = if index == 0 { ':' } else { ',' };
            write!(f, "{separator}{key}={}", value.text())?;
        }
        Ok(())
    }
}

/// Reads a name and, behind a colon, settings: `h2o`, `h2o:k=64`, `sparq-4bit:r=16,k=128,mean=never`.
///
/// What is left out is as in [`Method::named`], and follows from k where that is given: a local window of k/4, for one.
///
/// ```
/// use sparq::Method;
///
/// let method: Method = "sparq-4bit:r=16,k=64".parse()?;
/// assert_eq!(method.to_string(), "sparq:r=16,k=64,l=16,sketch=4bits,mean=paper,score=probabilities,components=sum-abs");
/// let error = "h2o:n=3".parse::<Method>().unwrap_err();
/// assert_eq!(error.to_string(), "setting of the method: expected one of k, l, found n");
/// # Ok::<(), sparq::SparqError>(())
/// ```
impl FromStr for Method {
    type Err = SparqError;

    fn from_str(text: &str) -> Result<Self, SparqError> {
        let (name, given) = text.split_once(':').unwrap_or((text, ""));
        let mut method = Self::named(name)?;
        let given = given.split(',').filter(|setting| !setting.is_empty());
        let given: Vec<(&str, &str)> = given
            .map(|setting| {
                let pair = setting.split_once('=');
                pair.ok_or_else(|| value("setting of a method", "key=value".into(), setting))
            })
            .collect::<Result<_, _>>()?;
        // k first: other sizes follow from it where they are not given.
        let (sizes, others): (Vec<_>, Vec<_>) = given.into_iter().partition(|(key, _)| *key == "k");
        for (key, text) in sizes {
            method.set(key, text)?;
            method.strategy_mut().follow_top_k();
        }
        for (key, text) in others {
            method.set(key, text)?;
        }
        Ok(method)
    }
}

impl Method {
    fn set(&mut self, key: &str, text: &str) -> Result<(), SparqError> {
        const WHAT: &str = "setting of the method";
        let mut settings = self.strategy_mut().settings();
        let known: Vec<_> = settings.iter().map(|(key, _)| *key).collect();
        let Some((_, setting)) = settings.iter_mut().find(|(known, _)| *known == key) else {
            let expected = match known.is_empty() {
                true => "none".into(),
                false => format!("one of {}", known.join(", ")),
            };
            return Err(value(WHAT, expected, key));
        };
        let set = setting.set(text);
        set.map_err(|expected| value(WHAT, format!("{key}={expected}"), text))
    }
}

fn value(what: &'static str, expected: String, found: &str) -> SparqError {
    SparqError::Value {
        what,
        expected,
        found: found.into(),
    }
}
