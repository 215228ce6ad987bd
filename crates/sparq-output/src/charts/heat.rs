//! A grid of coloured cells: [`HeatMap`].

use plotters::prelude::*;

use super::sheet::{self, Anchor, Area, text};
use super::{ChartError, Layout};

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The column's index.
    pub column: usize,
    /// The row's index.
    pub row: usize,
    /// From 0 to 1, which decides the colour.
    pub value: f64,
    /// What is written in it.
    pub label: String,
}

/// Values over two lists of names, each as a colour and as a number.
///
/// ```
/// use sparq_output::charts::{Cell, HeatMap, Layout};
///
/// let map = HeatMap {
///     title: "Needles found".into(),
///     x_label: "context, tokens".into(),
///     y_label: "depth".into(),
///     columns: vec!["1k".into(), "2k".into()],
///     rows: vec!["0%".into()],
///     cells: vec![Cell { column: 1, row: 0, value: 0.5, label: "1/2".into() }],
/// };
/// assert!(map.svg(Layout::Narrow)?.contains("1/2"));
/// # Ok::<(), sparq_output::charts::ChartError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// What it shows.
    pub title: String,
    /// What the columns are.
    pub x_label: String,
    /// What the rows are.
    pub y_label: String,
    /// The columns from left to right.
    pub columns: Vec<String>,
    /// The rows from top to bottom.
    pub rows: Vec<String>,
    /// What is known; a place without a cell stays empty.
    pub cells: Vec<Cell>,
}

/// Dark blue to light yellow through green, whose lightness alone tells the order (points of viridis).
const RAMP: [(u8, u8, u8); 6] = [
    (68, 1, 84),
    (65, 68, 135),
    (42, 120, 142),
    (34, 168, 132),
    (122, 209, 81),
    (253, 231, 37),
];

/// Text on cells is not quite ink and paper: it stays as it is where these change.
const ON_LIGHT: RGBColor = RGBColor(16, 16, 16);
const ON_DARK: RGBColor = RGBColor(250, 250, 250);

/// The height of a row and the most a column is wide, in pixels.
const ROW: i32 = 26;
const COLUMN: i32 = 84;

impl HeatMap {
    /// The picture.
    ///
    /// # Errors
    /// When there is no row or column, a cell is outside of them, or its value is no number.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        if columns == 0 || rows == 0 {
            return Err(ChartError::new(&self.title, "no rows or no columns"));
        }
        let outside = |cell: &&Cell| cell.column >= columns || cell.row >= rows;
        if let Some(cell) = self.cells.iter().find(outside) {
            let why = format!(
                "a cell at {}, {} of {columns} x {rows}",
                cell.column, cell.row
            );
            return Err(ChartError::new(&self.title, why));
        }
        if self.cells.iter().any(|cell| !cell.value.is_finite()) {
            return Err(ChartError::new(
                &self.title,
                "the value of a cell is no number",
            ));
        }
        let (left, top) = (64, if layout.is_titled() { 46 } else { 14 });
        let room = layout.width().min(640) - left - 14;
        let wide = (room / columns as i32).clamp(12, COLUMN);
        let size = (
            // The title has to fit as well.
            (left + wide * columns as i32 + 14).max(if layout.is_titled() { 420 } else { 0 }),
            top + ROW * rows as i32 + 92,
        );
        sheet::draw(&self.title, size, |area| {
            self.draw(area, layout, (left, top, wide))
        })
    }

    fn draw(
        &self,
        area: &Area<'_>,
        layout: Layout,
        (left, top, wide): (i32, i32, i32),
    ) -> Result<(), Box<dyn std::error::Error>> {
        if layout.is_titled() {
            text(area, &self.title, (14, 22), 16, Anchor::Start, BLACK)?;
        }
        let (right, bottom) = (
            left + wide * self.columns.len() as i32,
            top + ROW * self.rows.len() as i32,
        );
        for cell in &self.cells {
            let (x, y) = (
                left + wide * cell.column as i32,
                top + ROW * cell.row as i32,
            );
            let color = ramp(cell.value);
            area.draw(&Rectangle::new(
                [(x + 1, y + 1), (x + wide - 1, y + ROW - 1)],
                color.filled(),
            ))?;
            let ink = if lightness(color) > 0.45 {
                ON_LIGHT
            } else {
                ON_DARK
            };
            let middle = (x + wide / 2, y + ROW / 2);
            text(area, &cell.label, middle, 12, Anchor::Middle, ink)?;
        }
        for (index, row) in self.rows.iter().enumerate() {
            let y = top + ROW * index as i32 + ROW / 2;
            text(area, row, (left - 6, y), 12, Anchor::End, BLACK)?;
        }
        // Where columns are narrower than their names, only some are named.
        let widest = self.columns.iter().map(|name| name.chars().count()).max();
        let every = (widest.unwrap_or(0) as i32 * 8 + 6).div_euclid(wide) as usize + 1;
        for (index, column) in self.columns.iter().enumerate().step_by(every) {
            let x = left + wide * index as i32 + wide / 2;
            text(area, column, (x, bottom + 12), 12, Anchor::Middle, BLACK)?;
        }
        let middle = (left + right) / 2;
        text(
            area,
            &self.x_label,
            (middle, bottom + 32),
            13,
            Anchor::Middle,
            BLACK,
        )?;
        let label = ("sans-serif", 13)
            .into_font()
            .transform(FontTransform::Rotate270)
            .color(&BLACK);
        let half = 7 * self.y_label.chars().count() as i32 / 2;
        let beside = (4, (top + bottom) / 2 + half);
        area.draw(&Text::new(self.y_label.clone(), beside, label))?;
        self.draw_scale(area, (left, bottom + 54))
    }

    /// What the colours mean.
    fn draw_scale(
        &self,
        area: &Area<'_>,
        (left, top): (i32, i32),
    ) -> Result<(), Box<dyn std::error::Error>> {
        const STEPS: i32 = 40;
        const STEP: i32 = 4;
        for step in 0..STEPS {
            let x = left + step * STEP;
            let color = ramp(f64::from(step) / f64::from(STEPS - 1));
            area.draw(&Rectangle::new(
                [(x, top), (x + STEP, top + 10)],
                color.filled(),
            ))?;
        }
        text(area, "0", (left, top + 20), 12, Anchor::Middle, BLACK)?;
        text(
            area,
            "1",
            (left + STEPS * STEP, top + 20),
            12,
            Anchor::Middle,
            BLACK,
        )
    }
}

/// The colour of a value from 0 to 1.
fn ramp(value: f64) -> RGBColor {
    let at = value.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let low = (at as usize).min(RAMP.len() - 2);
    let part = at - low as f64;
    let (a, b) = (RAMP[low], RAMP[low + 1]);
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// How light a colour looks, from 0 to 1.
fn lightness(RGBColor(r, g, b): RGBColor) -> f64 {
    (0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_value_is_lighter() {
        let light: Vec<f64> = (0..=20)
            .map(|n| lightness(ramp(f64::from(n) / 20.0)))
            .collect();
        assert!(light.windows(2).all(|pair| pair[0] < pair[1]), "{light:?}");
        assert_eq!(ramp(-1.0), ramp(0.0));
        assert_eq!(ramp(2.0), ramp(1.0));
    }

    #[test]
    fn a_cell_outside_is_refused() {
        let mut map = HeatMap {
            title: "map".into(),
            x_label: "x".into(),
            y_label: "y".into(),
            columns: vec!["a".into()],
            rows: vec!["b".into()],
            cells: vec![Cell {
                column: 1,
                row: 0,
                value: 0.0,
                label: String::new(),
            }],
        };
        let error = map.svg(Layout::File).unwrap_err().to_string();
        assert_eq!(error, "map: a cell at 1, 0 of 1 x 1");
        map.cells[0].column = 0;
        map.cells[0].value = f64::NAN;
        assert!(map.svg(Layout::File).is_err());
    }
}
