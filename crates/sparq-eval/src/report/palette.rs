//! The colour and marker of each method, the same in every figure.

use sparq_output::charts::{Marker, Paint};

use super::{Results, distinct};
use crate::REFERENCE;

/// The methods in order of appearance, without dense attention.
pub struct Palette {
    methods: Vec<String>,
}

impl Palette {
    /// Collects the methods of results.
    pub fn of(results: &Results) -> Self {
        let examples = results.examples.iter().map(|record| &record.method);
        let choices = results.attention.iter().flat_map(|record| &record.choices);
        let all = examples.chain(choices.map(|choice| &choice.method));
        let methods = distinct(all).filter(|method| *method != REFERENCE);
        Self {
            methods: methods.cloned().collect(),
        }
    }

    /// Returns the colour and marker of a method. If colours repeat, their markers differ.
    pub fn style(&self, method: &str) -> (Paint, Marker) {
        if method == REFERENCE {
            return (Paint::Black, Marker::Circle);
        }
        let index = self.methods.iter().position(|known| known == method);
        let index = index.unwrap_or(self.methods.len());
        let (colors, marks) = (Paint::LINES.len(), Marker::ALL.len());
        let (color, round) = (index % colors, index / colors);
        (
            Paint::LINES[color],
            Marker::ALL[(1 + color + round) % marks],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_distinct_styles() {
        let methods: Vec<String> = (0..30).map(|index| format!("method {index}")).collect();
        let palette = Palette {
            methods: methods.clone(),
        };
        let styles: Vec<_> = methods.iter().map(|method| palette.style(method)).collect();
        assert_eq!(distinct(styles.iter()).count(), 30);
    }
}
