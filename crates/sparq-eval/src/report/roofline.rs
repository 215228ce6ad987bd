//! [`Roofline`]: the arithmetic intensity of decode steps and the rate a machine can reach with it.

use sparq::Method;
use sparq_output::charts::{Axis, Chart, Marker, Paint, Scale, Series};
use sparq_output::numbers::{self, digits};
use sparq_output::table::{Cell, Table};
use sparq_plan::Setup;

use super::Section;
use super::figures::{Figure, Picture};

/// A model on a machine, and the methods to show.
#[derive(Clone, Debug)]
pub struct Roofline {
    /// The name of the model.
    pub model: String,
    /// The model on the machine.
    pub setup: Setup,
    /// The methods.
    pub methods: Vec<Method>,
}

/// The numbers of sequences and positions of the steps shown.
const BATCHES: [usize; 3] = [1, 16, 64];
const LENGTHS: [usize; 3] = [4096, 32_768, 131_072];

/// The operations per byte at which the roof is drawn.
const INTENSITIES: [f64; 5] = [0.1, 1.0, 10.0, 100.0, 1000.0];

impl Roofline {
    /// Makes the section of the report.
    pub fn section(&self) -> Section {
        let machine = &self.setup.machine;
        Section {
            title: format!("Arithmetic and bytes, {} on {}", self.model, machine.name),
            text: format!(
                "A decode step does a few operations for each byte that it moves. {} can do {} \
                 operations in the time of one byte, so steps are bound by memory, under the slope \
                 of the roof. Marks are steps of B sequences at S positions. Their height follows \
                 from the time that the cost model predicts (docs/planning.md).",
                machine.name,
                machine.tflops.map_or("an unknown number".into(), |tflops| {
                    format!("{:.0}", tflops * 1e3 / machine.gb_per_s)
                })
            ),
            tables: vec![self.table()],
            figures: vec![self.figure()],
        }
    }

    fn steps(&self) -> impl Iterator<Item = (usize, usize)> {
        BATCHES
            .into_iter()
            .flat_map(|batch| LENGTHS.map(|length| (batch, length)))
    }

    /// Returns the operations per second in the predicted time, in 10^12.
    fn tflops(&self, method: &Method, batch: usize, seq_len: usize) -> f64 {
        let flops = self.setup.work(method, batch, seq_len).flops;
        flops / self.setup.step(method, batch, seq_len).total_us() / 1e6
    }

    fn figure(&self) -> Figure {
        let machine = &self.setup.machine;
        let mut roof = Series::bare("roof", Paint::Black);
        let ridge = machine.tflops.map(|tflops| tflops * 1e3 / machine.gb_per_s);
        let mut at: Vec<f64> = INTENSITIES.into_iter().chain(ridge).collect();
        at.sort_by(f64::total_cmp);
        let point = |flops| {
            let work = sparq_plan::Work { flops, bytes: 1.0 };
            (flops, work.attainable_tflops(machine))
        };
        roof.points = at.into_iter().map(point).collect();
        let mut series = vec![roof];
        for (index, method) in self.methods.iter().enumerate() {
            let paint = match method {
                Method::Dense(_) => Paint::Black,
                _ => Paint::LINES[index % Paint::LINES.len()],
            };
            for (batch, marker) in BATCHES.into_iter().zip(Marker::ALL) {
                let label = format!("{}, B = {batch}", short(method));
                let mut marks = Series::scattered(&label, paint, marker);
                let point = |length| {
                    let work = self.setup.work(method, batch, length);
                    (work.intensity(), self.tflops(method, batch, length))
                };
                marks.points = LENGTHS.map(point).into();
                series.push(marks);
            }
        }
        let title = format!("Roofline of {} on {}", self.model, machine.name);
        Figure {
            name: "roofline".into(),
            caption: format!(
                "The three marks of a kind are S = {}.",
                LENGTHS.map(numbers::positions).join(", ")
            ),
            picture: Picture::Lines(Chart {
                title: title.clone(),
                x: Axis {
                    label: "arithmetic intensity, operations per byte",
                    format: |value| value.to_string(),
                },
                y: Axis {
                    label: "10^12 operations per second",
                    format: |value| value.to_string(),
                },
                y_scale: Scale::Log,
                ticks: Some(INTENSITIES.into()),
                series,
            }),
            title,
        }
    }

    fn table(&self) -> Table {
        let number = |value: f64| Cell::number(three(value), value);
        let mut rows = Vec::new();
        for method in &self.methods {
            for (batch, length) in self.steps() {
                let work = self.setup.work(method, batch, length);
                let step = self.setup.step(method, batch, length).total_us();
                let largest = self.setup.largest_batch(method, length);
                rows.push(vec![
                    method.to_string().into(),
                    number(batch as f64),
                    Cell::number(numbers::positions(length), length as f64),
                    number(work.bytes / 1e9),
                    number(work.intensity()),
                    number(work.floor_us(&self.setup.machine) / 1e3),
                    number(step / 1e3),
                    Cell::number(if largest >= batch { "yes" } else { "no" }, largest as f64),
                ]);
            }
        }
        let headings = [
            "method",
            "B",
            "S",
            "GB moved",
            "operations/byte",
            "roof ms",
            "predicted ms",
            "fits",
        ];
        Table {
            headings: headings.map(str::to_owned).into(),
            rows,
        }
    }
}

/// Returns the name of a method and the bits of its sketch.
fn short(method: &Method) -> String {
    match method.sketch().and_then(|sketch| sketch.bits()) {
        Some(bits) => format!("{} {bits} bits", method.name()),
        None => method.name().into(),
    }
}

/// Formats an integer as such and other numbers with about three significant digits.
fn three(value: f64) -> String {
    match value.fract() == 0.0 && value.abs() < 9.995 {
        true => format!("{value:.0}"),
        false => digits(value),
    }
}
