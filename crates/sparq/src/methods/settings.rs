//! Methods as words: `sparq:r=16,k=128,l=32,sketch=4bits,...`.

use crate::{Components, GroupScore, MeanValue, Sketch, SparqError};

/// The settings of a method by name, in the order in which they are written.
pub type Settings<'a> = Vec<(&'static str, &'a mut dyn Setting)>;

/// A setting that can be written and read.
pub trait Setting {
    /// The value in words.
    fn text(&self) -> String;

    /// Takes over a value in words.
    ///
    /// # Errors
    /// What is expected, in words.
    fn set(&mut self, text: &str) -> Result<(), String>;
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

/// A number that may be left out.
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

/// Values that have a word each.
macro_rules! words {
    ($type:ty { $($value:ident = $word:literal),* $(,)? }) => {
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
        }
    };
}

pub(super) use words;

words!(Sketch { Full = "full", Bits8 = "8bits", Bits4 = "4bits" });
words!(MeanValue { Always = "always", Never = "never", Paper = "paper" });
words!(GroupScore { Probabilities = "probabilities", Logits = "logits" });
words!(Components { SumAbs = "sum-abs", AbsSum = "abs-sum" });

/// Checks a size that has a least value.
pub(super) fn at_least(
    field: &'static str,
    least: usize,
    why: &str,
    found: usize,
) -> Result<(), SparqError> {
    match found >= least {
        true => Ok(()),
        false => Err(SparqError::Config {
            field,
            expected: format!("at least {least} ({why})"),
            found,
            advice: "raise it",
        }),
    }
}
