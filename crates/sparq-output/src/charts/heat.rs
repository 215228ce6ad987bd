//! [`HeatMap`]: a grid of coloured cells.

use plotters::prelude::*;

use super::sheet::{self, Anchor, Area, Drawn, text};
use super::{ChartError, Layout};

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The index of the column.
    pub column: usize,
    /// The index of the row.
    pub row: usize,
    /// The value from 0 to 1, shown as a colour.
    pub value: f64,
    /// The text in the cell.
    pub label: String,
}

/// Values over named columns and rows, each as a colour and a text.
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
    /// The title.
    pub title: String,
    /// The label of the columns.
    pub x_label: String,
    /// The label of the rows.
    pub y_label: String,
    /// The columns from left to right.
    pub columns: Vec<String>,
    /// The rows from top to bottom.
    pub rows: Vec<String>,
    /// The cells. Places without a cell stay empty.
    pub cells: Vec<Cell>,
}

/// Colours from dark blue through green to light yellow, ordered by lightness (points of viridis).
const RAMP: [(u8, u8, u8); 6] = [
    (68, 1, 84),
    (65, 68, 135),
    (42, 120, 142),
    (34, 168, 132),
    (122, 209, 81),
    (253, 231, 37),
];

/// The colours of text on cells. They differ from ink and paper, so dark mode does not change them.
const ON_LIGHT: RGBColor = RGBColor(16, 16, 16);
const ON_DARK: RGBColor = RGBColor(250, 250, 250);

/// The height of a row and the largest width of a column, in pixels.
const ROW: i32 = 26;
const COLUMN: i32 = 84;

impl HeatMap {
    /// Draws the map.
    ///
    /// # Errors
    /// If there are no rows or columns, a cell is outside of them, or its value is not finite.
    pub fn svg(&self, layout: Layout) -> Result<String, ChartError> {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        if columns == 0 || rows == 0 {
            let why = "expected at least one row and column";
            return Err(ChartError::new(&self.title, why));
        }
        let outside = |cell: &&Cell| cell.column >= columns || cell.row >= rows;
        if let Some(cell) = self.cells.iter().find(outside) {
            let why = format!(
                "expected cells within {columns} x {rows}, found one at {}, {}",
                cell.column, cell.row
            );
            return Err(ChartError::new(&self.title, why));
        }
        if self.cells.iter().any(|cell| !cell.value.is_finite()) {
            let why = "expected finite values of cells";
            return Err(ChartError::new(&self.title, why));
        }
        let (left, top) = (64, if layout.is_titled() { 46 } else { 14 });
        let room = layout.width().min(640) - left - 14;
        let wide = (room / columns as i32).clamp(12, COLUMN);
        let size = (
            // The title has to fit as well.
            (left + wide * columns as i32 + 14).max(if layout.is_titled() { 420 } else { 0 }),
            top + ROW * rows as i32 + 92,
        );
        let place = (left, top, wide);
        sheet::draw(&self.title, size, |area| self.draw(area, layout, place))
    }

    fn draw(&self, area: &Area<'_>, layout: Layout, (left, top, wide): (i32, i32, i32)) -> Drawn {
        if layout.is_titled() {
            text(area, &self.title, (14, 22), 16, Anchor::Start, BLACK)?;
        }
        let right = left + wide * self.columns.len() as i32;
        let bottom = top + ROW * self.rows.len() as i32;
        for cell in &self.cells {
            let x = left + wide * cell.column as i32;
            let y = top + ROW * cell.row as i32;
            let color = ramp(cell.value);
            let corners = [(x + 1, y + 1), (x + wide - 1, y + ROW - 1)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
            let ink = match lightness(color) > 0.45 {
                true => ON_LIGHT,
                false => ON_DARK,
            };
            let middle = (x + wide / 2, y + ROW / 2);
            text(area, &cell.label, middle, 12, Anchor::Middle, ink)?;
        }
        for (index, row) in self.rows.iter().enumerate() {
            let y = top + ROW * index as i32 + ROW / 2;
            text(area, row, (left - 6, y), 12, Anchor::End, BLACK)?;
        }
        // Names wider than their columns are shown for some columns only.
        let widest = self.columns.iter().map(|name| name.chars().count()).max();
        let every = (widest.unwrap_or(0) as i32 * 8 + 6).div_euclid(wide) as usize + 1;
        for (index, column) in self.columns.iter().enumerate().step_by(every) {
            let x = left + wide * index as i32 + wide / 2;
            text(area, column, (x, bottom + 12), 12, Anchor::Middle, BLACK)?;
        }
        let below = ((left + right) / 2, bottom + 32);
        text(area, &self.x_label, below, 13, Anchor::Middle, BLACK)?;
        let label = ("sans-serif", 13)
            .into_font()
            .transform(FontTransform::Rotate270)
            .color(&BLACK);
        let half = 7 * self.y_label.chars().count() as i32 / 2;
        let beside = (4, (top + bottom) / 2 + half);
        area.draw(&Text::new(self.y_label.clone(), beside, label))?;
        self.draw_scale(area, (left, bottom + 54))
    }

    /// Draws the scale of colours.
    fn draw_scale(&self, area: &Area<'_>, (left, top): (i32, i32)) -> Drawn {
        const SHADES: i32 = 40;
        const WIDTH: i32 = 4;
        for shade in 0..SHADES {
            let x = left + shade * WIDTH;
            let color = ramp(f64::from(shade) / f64::from(SHADES - 1));
            let corners = [(x, top), (x + WIDTH, top + 10)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
        }
        text(area, "0", (left, top + 20), 12, Anchor::Middle, BLACK)?;
        let end = (left + SHADES * WIDTH, top + 20);
        text(area, "1", end, 12, Anchor::Middle, BLACK)
    }
}

/// Returns the colour of a value from 0 to 1.
fn ramp(value: f64) -> RGBColor {
    let at = value.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let low = (at as usize).min(RAMP.len() - 2);
    let part = at - low as f64;
    let (a, b) = (RAMP[low], RAMP[low + 1]);
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// Returns the perceived lightness of a colour, from 0 to 1.
fn lightness(RGBColor(r, g, b): RGBColor) -> f64 {
    (0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_values_are_lighter() {
        let light = (0..=20).map(|n| lightness(ramp(f64::from(n) / 20.0)));
        let light: Vec<f64> = light.collect();
        assert!(light.windows(2).all(|pair| pair[0] < pair[1]), "{light:?}");
        assert_eq!(ramp(-1.0), ramp(0.0));
        assert_eq!(ramp(2.0), ramp(1.0));
    }

    #[test]
    fn cells_outside_are_refused() {
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
        assert_eq!(error, "map: expected cells within 1 x 1, found one at 1, 0");
        map.cells[0].column = 0;
        map.cells[0].value = f64::NAN;
        assert!(map.svg(Layout::File).is_err());
    }
}
