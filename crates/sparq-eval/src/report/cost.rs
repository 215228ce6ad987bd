//! The roofline: how much arithmetic a step does on each byte, and how far that can take a machine.

use sparq::Method;
use sparq_output::charts::{Axis, Chart, Marker, Paint, Scale, Series};
use sparq_output::numbers;
use sparq_output::table::{Cell, Table};
use sparq_plan::Setup;

use super::Section;
use super::figures::{Figure, Picture};

/// A model on a machine, and the steps to show.
#[derive(Clone, Debug)]
pub struct Roofline {
    /// The model's name.
    pub model: String,
    /// The model on the machine.
    pub setup: Setup,
    /// The methods.
    pub methods: Vec<Method>,
}

/// The batches and lengths of the steps.
const BATCHES: [usize; 3] = [1, 16, 64];
const LENGTHS: [usize; 3] = [4096, 32_768, 131_072];

/// Operations for each byte at which the roof is drawn.
const INTENSITIES: [f64; 5] = [0.1, 1.0, 10.0, 100.0, 1000.0];

impl Roofline {
    /// The section of the page.
    pub fn section(&self) -> Section {
        let machine = &self.setup.machine;
        Section {
            title: format!("Arithmetic and bytes, {} on {}", self.model, machine.name),
            text: format!(
                "A decode step does a few operations for each byte that it moves, and {} does {} of them in the time of a byte: steps are bound by the memory, \
                 under the slope of the roof. Marks are steps of B sequences at S positions, at the height where the time that the cost model predicts puts \
                 them (docs/planning.md).",
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

    /// 10^12 operations a second in the predicted time.
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
        roof.points = at
            .into_iter()
            .map(|intensity| {
                let work = sparq_plan::Work {
                    flops: intensity,
                    bytes: 1.0,
                };
                (intensity, work.attainable_tflops(machine))
            })
            .collect();
        let mut series = vec![roof];
        for (index, method) in self.methods.iter().enumerate() {
            let paint = match method {
                Method::Dense(_) => Paint::Black,
                _ => Paint::LINES[index % Paint::LINES.len()],
            };
            for (batch, marker) in BATCHES.into_iter().zip(Marker::ALL) {
                let label = format!("{}, B = {batch}", short(method));
                let mut marks = Series::scattered(&label, paint, marker);
                marks.points = LENGTHS
                    .map(|length| {
                        let work = self.setup.work(method, batch, length);
                        (work.intensity(), self.tflops(method, batch, length))
                    })
                    .into();
                series.push(marks);
            }
        }
        let title = format!("Roofline of {} on {}", self.model, machine.name);
        Figure {
            name: "roofline".into(),
            caption: format!(
                "Three marks of a kind are S = {}.",
                LENGTHS.map(numbers::positions).join(", ")
            ),
            picture: Picture::Lines(Chart {
                title: title.clone(),
                x: Axis {
                    label: "arithmetic intensity, operations for each byte",
                    format: |value| value.to_string(),
                },
                y: Axis {
                    label: "10^12 operations a second",
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
                rows.push(vec![
                    method.to_string().into(),
                    number(batch as f64),
                    Cell::number(numbers::positions(length), length as f64),
                    number(work.bytes / 1e9),
                    number(work.intensity()),
                    number(work.floor_us(&self.setup.machine) / 1e3),
                    number(step / 1e3),
                    Cell::number(
                        if self.setup.largest_batch(method, length) >= batch {
                            "yes"
                        } else {
                            "no"
                        },
                        self.setup.largest_batch(method, length) as f64,
                    ),
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

/// A method by its name, and the bits of a sketch.
fn short(method: &Method) -> String {
    match method.sketch().and_then(|sketch| sketch.bits()) {
        Some(bits) => format!("{} {bits} bits", method.name()),
        None => method.name().into(),
    }
}

/// Three digits or so.
fn three(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}
