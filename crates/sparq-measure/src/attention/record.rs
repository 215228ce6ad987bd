//! The measured rows of a run. Their fields are part of the schema of the JSON reports: times in
//! microseconds, bandwidths in GB/s (10^9 bytes), sizes in bytes.

use serde::{Deserialize, Serialize};
use sparq::methods::{Components, GroupScore};
use sparq::{RowFormat, Sketch, SparqConfig};

use super::stage::StageTime;
use crate::bandwidth::Bandwidth;
use crate::shape::{CacheType, Shape};
use crate::stats::Summary;
use crate::timing::Mode;

/// The method of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// Dense attention of this project, [`sparq::ops::dense_decode`].
    Dense,
    /// The same over K and V in codes of 8 bits.
    DenseInt8,
    /// Dense attention of burn, `burn::tensor::module::attention`. It does not support groups: for
    /// g > 1, K and V are expanded to all heads before the measurement.
    DenseBurn,
    /// SparQ, [`sparq::ops::sparq_decode`].
    Sparq,
    /// Attention over positions that another layer selected, [`sparq::ops::attend_positions`].
    Given,
    /// Several layers, the first of which selects the positions of all: SparQ and then
    /// [`MethodName::Given`]. Times are those of one layer on average.
    Sharing,
}

/// The results of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the device on the command line.
    pub device: String,
    /// Name of the GPU, as reported by the driver.
    pub gpu: Option<String>,
    /// Bytes of the last-level cache, which the rotation of buffers exceeds.
    pub cache_bytes: u64,
    /// The memory bandwidth, measured just before the rows.
    pub bandwidth: Bandwidth,
    /// The rows, in the order of the cases.
    pub rows: Vec<Row>,
}

/// One method on one shape, in one mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The shape.
    pub shape: Shape,
    /// The element type of K and V.
    pub dtype: CacheType,
    /// The method.
    pub method: MethodName,
    /// How calls reach the device.
    pub mode: Mode,
    /// SparQ's settings, if the method is SparQ or takes its positions.
    pub settings: Option<SparqConfig>,
    /// The number of layers that share positions, for [`MethodName::Sharing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Elements to move, counted by [`sparq::Transfers`].
    pub elements: usize,
    /// Bytes to move, counted by [`sparq::Transfers`].
    pub bytes: f64,
    /// The measurement. `None` if the case could not run.
    pub measured: Option<Measured>,
    /// The reason why the case was not measured.
    pub skipped: Option<String>,
    /// The time of each stage of a captured SparQ step, on devices that can end a step after a
    /// stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageTime>,
}

/// The measurement of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Time of one call.
    pub time: Summary,
    /// Bytes to move divided by the median time.
    pub gb_per_s: f64,
    /// `gb_per_s` divided by [`Bandwidth::reference_gb_per_s`].
    pub share_of_bandwidth: f64,
    /// The median of this project's dense attention on the same shape and in the same mode,
    /// divided by this median.
    pub speedup_over_dense: Option<f64>,
    /// The number of buffer sets that calls rotate through.
    pub buffer_sets: usize,
    /// Bytes to move, over all buffer sets.
    pub working_set_bytes: f64,
    /// True if the working set exceeds the last-level cache, see
    /// [`DeviceMemory::is_cold`](crate::memory::DeviceMemory::is_cold).
    pub cold: bool,
    /// For captured calls: true if the device captured a graph, false if each replay repeats the
    /// calls.
    pub hardware_graph: Option<bool>,
}

impl Row {
    /// The median time in microseconds, if the row was measured.
    pub fn median_us(&self) -> Option<f64> {
        self.measured
            .as_ref()
            .map(|measured| measured.time.median_us)
    }

    /// The method with its settings: `SparQ 4bits r=32 k=128`.
    pub fn label(&self) -> String {
        match (self.method, &self.settings) {
            (MethodName::Dense, _) => "dense".into(),
            (MethodName::DenseInt8, _) => "dense rows=int8".into(),
            (MethodName::DenseBurn, _) => "dense (burn)".into(),
            (MethodName::Given, Some(settings)) => {
                format!(
                    "given positions k={}{}",
                    settings.top_k,
                    rows_label(settings)
                )
            }
            (_, None) => "SparQ".into(),
            (_, Some(settings)) => {
                let (label, group) = (sparq_label(settings), self.group_label(settings));
                format!("{label}{group}{}", self.sharing_label())
            }
        }
    }

    /// The label without r and k, which may depend on S.
    pub fn family(&self) -> String {
        match &self.settings {
            Some(_) if self.method == MethodName::Given => self.label(),
            Some(settings) => format!(
                "SparQ {}{}{}{}",
                sketch_name(settings.sketch),
                rows_label(settings),
                self.group_label(settings),
                self.sharing_label()
            ),
            None => self.label(),
        }
    }

    /// Returns whether this is SparQ with the group rules of the paper. Every shape has such a row.
    pub fn is_default_sparq(&self) -> bool {
        self.method == MethodName::Sparq
            && (self.shape.group_size() == 1
                || self.settings.is_some_and(|settings| {
                    settings.group_score == GroupScore::Probabilities
                        && settings.components == Components::SumAbs
                }))
    }

    /// The layers that share positions, if there are several.
    fn sharing_label(&self) -> String {
        self.layers.map_or(String::new(), |layers| {
            format!(", 1 of {layers} layers selects")
        })
    }

    /// The group rules, unless they are those of the paper.
    fn group_label(&self, settings: &SparqConfig) -> &'static str {
        match (settings.group_score, settings.components) {
            _ if self.shape.group_size() == 1 => "",
            (GroupScore::Probabilities, Components::SumAbs) => "",
            (GroupScore::Logits, Components::AbsSum) => " as one query",
            (GroupScore::Logits, Components::SumAbs) => " logits",
            (GroupScore::Probabilities, Components::AbsSum) => " abs_sum",
        }
    }
}

/// The settings of SparQ without its group rules: `SparQ 4bits r=32 k=128`.
pub fn sparq_label(settings: &SparqConfig) -> String {
    let sketch = sketch_name(settings.sketch);
    let rows = rows_label(settings);
    format!(
        "SparQ {sketch} r={} k={}{rows}",
        settings.rank, settings.top_k
    )
}

/// The format of K and V, unless they are floats.
fn rows_label(settings: &SparqConfig) -> &'static str {
    match settings.rows {
        RowFormat::Float => "",
        RowFormat::Int8 => " rows=int8",
    }
}

/// The name of a sketch in JSON, tables and on the command line.
pub fn sketch_name(sketch: Sketch) -> &'static str {
    match sketch {
        Sketch::Full => "full",
        Sketch::Bits8 => "8bits",
        Sketch::Bits4 => "4bits",
    }
}
