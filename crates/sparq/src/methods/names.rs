//! Methods as words, for command lines and reports: `sparq:r=16,k=128,l=32,sketch=4bits,...`.

use std::fmt;
use std::str::FromStr;

use super::{Budget, Method};
use crate::SparqError;

impl Method {
    /// The names that [`Method::named`] and [`Method::for_budget`] accept.
    ///
    /// [`Auto`](super::Auto) has no name: it chooses between two methods.
    pub fn names() -> Vec<&'static str> {
        Self::presets().into_iter().map(|(name, _)| name).collect()
    }

    /// Returns the method of this name, with the paper's k = 128 and, for head_dim 128, r = 32.
    ///
    /// # Errors
    /// [`SparqError::Value`] with all names, for an unknown one.
    pub fn named(name: &str) -> Result<Self, SparqError> {
        let presets = Self::presets();
        let found = presets.iter().find(|(known, _)| *known == name);
        found.map(|&(_, method)| method).ok_or_else(|| {
            let expected = format!("one of {}", Self::names().join(", "));
            SparqError::value("method", expected, name)
        })
    }

    /// Returns the method of this name with the largest sizes that fit a budget.
    ///
    /// See [`Method::at_budget`].
    ///
    /// ```
    /// use sparq::cost::CacheShape;
    /// use sparq::{Method, Transfers};
    ///
    /// let shape = CacheShape { head_dim: 64, kv_heads: 3, layers: 1, element_bytes: 2 };
    /// let dense = Transfers::dense(&shape, 4096).bytes();
    /// for name in Method::names() {
    ///     match Method::for_budget(name, 64, 4096, 1.0 / 8.0) {
    ///         Ok(method) => {
    ///             let bytes = method.transfers(&shape, 4096).bytes();
    ///             assert!(bytes <= dense / 8.0, "{method}");
    ///         }
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
        Self::named(name)?.at_budget(&Budget::new(head_dim, seq_len, ratio)?)
    }

    /// Returns this method with the largest sizes that stay within a budget. Settings other than
    /// sizes are kept.
    ///
    /// # Errors
    /// [`SparqError::Budget`] if no sizes fit.
    pub fn at_budget(&self, budget: &Budget) -> Result<Self, SparqError> {
        self.strategy().at_budget(budget)
    }

    /// Sets one setting from its words.
    fn set(&mut self, key: &str, text: &str) -> Result<(), SparqError> {
        const WHAT: &str = "setting of the method";
        let mut settings = self.strategy_mut().settings();
        let known: Vec<_> = settings.iter().map(|(key, _)| *key).collect();
        let Some((_, setting)) = settings.iter_mut().find(|(known, _)| *known == key) else {
            let expected = format!("one of {}", known.join(", "));
            return Err(SparqError::value(WHAT, expected, key));
        };
        let set = setting.set(text);
        set.map_err(|expected| SparqError::value(WHAT, format!("{key}={expected}"), text))
    }
}

/// Writes the name and all settings but `rows=float`, as [`Method::from_str`] reads them.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copy = *self;
        f.write_str(self.name())?;
        let settings = copy.strategy_mut().settings().into_iter();
        let written = settings.filter(|(_, value)| !value.is_implied());
        for (index, (key, value)) in written.enumerate() {
            let separator = if index == 0 { ':' } else { ',' };
            write!(f, "{separator}{key}={}", value.text())?;
        }
        Ok(())
    }
}

/// Reads a name and, after a colon, settings: `h2o`, `h2o:k=64`,
/// `sparq-4bit:r=16,k=128,mean=never`.
///
/// Settings that are left out are those of [`Method::named`]. Where k is given, sizes that depend
/// on it follow: for example, a local window of k/4.
///
/// ```
/// use sparq::Method;
///
/// let method: Method = "sparq-4bit:r=16,k=64".parse()?;
/// assert_eq!(
///     method.to_string(),
///     "sparq:r=16,k=64,l=16,sketch=4bits,mean=paper,score=probabilities,components=sum-abs",
/// );
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
        let given = given.map(|setting| {
            let pair = setting.split_once('=');
            pair.ok_or_else(|| SparqError::value("setting of a method", "key=value", setting))
        });
        let given: Vec<(&str, &str)> = given.collect::<Result<_, _>>()?;
        // k first: sizes that depend on it follow, unless they are given too.
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
