//! API keys: [`ApiKeys`].

use subtle::{Choice, ConstantTimeEq};

/// The keys that clients may have. Without any, every client may connect.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<Vec<u8>>);

impl ApiKeys {
    /// Reads keys from a text, one per line. Empty lines and those that begin with `#` are none.
    ///
    /// ```
    /// use sparq_serve::http::ApiKeys;
    ///
    /// let keys = ApiKeys::from_lines("# of the team\nsecret\n");
    /// assert!(keys.allow(Some("Bearer secret")));
    /// assert!(!keys.allow(Some("Bearer secre")) && !keys.allow(None));
    /// assert!(ApiKeys::default().allow(None));
    /// ```
    pub fn from_lines(text: &str) -> Self {
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(keys.map(|key| key.as_bytes().to_vec()).collect())
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the value of the header `authorization` has one of the keys.
    ///
    /// The time depends on the lengths of the keys, and not on their contents.
    pub fn allow(&self, authorization: Option<&str>) -> bool {
        if self.is_empty() {
            return true;
        }
        let given = authorization.and_then(|value| {
            let (scheme, key) = value.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let given = given.unwrap_or_default().as_bytes();
        let equal = |key: &Vec<u8>| key.as_slice().ct_eq(given);
        let any = self
            .0
            .iter()
            .map(equal)
            .fold(Choice::from(0), |any, equal| any | equal);
        any.into()
    }
}
