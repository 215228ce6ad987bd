//! Settings of methods as words.

use crate::SparqError;

/// The settings of a method by name, in the order in which they are written.
pub type Settings<'a> = Vec<(&'static str, &'a mut dyn Setting)>;

/// A setting that can be written and read as a word.
pub trait Setting {
    /// Returns the value as a word.
    fn text(&self) -> String;

    /// Sets the value from a word.
    ///
    /// # Errors
    /// A description of the words that are accepted.
    fn set(&mut self, text: &str) -> Result<(), String>;

    /// Returns whether the words of a method leave the setting out.
    fn is_implied(&self) -> bool {
        false
    }
}

impl Setting for usize {
    fn text(&self) -> String {
        self.to_string()
    }

    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = text.parse().map_err(|_| "a whole number".to_owned())?;
        Ok(())
    }
}

/// A number that is optional.
impl Setting for Option<usize> {
    fn text(&self) -> String {
        self.map_or_else(|| "none".into(), |number| number.to_string())
    }

    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "none" => None,
            _ => Some(
                text.parse()
                    .map_err(|_| "a whole number, or none".to_owned())?,
            ),
        };
        Ok(())
    }
}

/// Implements [`Setting`] for an enum with one word per variant, perhaps an implied one.
macro_rules! words {
    ($type:ty { $($value:ident = $word:literal),* $(,)? } $(implies $implied:ident)?) => {
        impl $crate::methods::settings::Setting for $type {
            fn text(&self) -> String {
                match self { $(<$type>::$value => $word.into()),* }
            }

            fn set(&mut self, text: &str) -> Result<(), String> {
                *self = match text {
                    $($word => <$type>::$value,)*
                    _ => return Err(format!("one of {}", [$($word),*].join(", "))),
                };
                Ok(())
            }

            fn is_implied(&self) -> bool {
                false $(|| *self == <$type>::$implied)?
            }
        }
    };
}

pub(super) use words;

/// Checks a size that has a minimum.
pub(super) fn at_least(
    field: &'static str,
    least: usize,
    why: &str,
    found: usize,
) -> Result<(), SparqError> {
    if found >= least {
        return Ok(());
    }
    let expected = format!("at least {least} ({why})");
    Err(SparqError::config(field, expected, found, "raise it"))
}
