//! The number of layers of a model that select positions: [`Anchors`].

use serde::{Deserialize, Serialize};

use super::settings::Setting;

/// The layers of a model that select the positions of a SparQ step. The other layers reuse them.
///
/// An anchor selects positions by its own scores. A reuse layer attends exactly to the positions
/// that an anchor before it selected in the same step, as in Kascade. It needs no key sketch. Which
/// layers are anchors is a matter of the model, and a single layer is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Option<usize>", into = "Option<usize>")]
pub enum Anchors {
    /// Every layer selects its own positions.
    #[default]
    All,
    /// As many layers, or all layers of a model that has no more.
    Number(usize),
}

impl Anchors {
    /// Returns the number of anchors among `layers` layers.
    pub fn of(self, layers: usize) -> usize {
        match self {
            Self::All => layers,
            Self::Number(number) => number.min(layers),
        }
    }

    /// Returns whether every layer of a model selects, whatever their number.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

impl From<Option<usize>> for Anchors {
    fn from(number: Option<usize>) -> Self {
        number.map_or(Self::All, Self::Number)
    }
}

impl From<Anchors> for Option<usize> {
    fn from(anchors: Anchors) -> Self {
        match anchors {
            Anchors::All => None,
            Anchors::Number(number) => Some(number),
        }
    }
}

impl Setting for Anchors {
    fn text(&self) -> String {
        match self {
            Self::All => "all".into(),
            Self::Number(number) => number.to_string(),
        }
    }

    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match (text, text.parse()) {
            ("all", _) => Self::All,
            (_, Ok(number)) if number > 0 => Self::Number(number),
            _ => return Err("a number of layers, at least 1, or all".to_owned()),
        };
        Ok(())
    }

    fn is_implied(&self) -> bool {
        self.is_all()
    }
}
