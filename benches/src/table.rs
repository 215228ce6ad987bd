//! Tables, for a terminal and in Markdown, and the numbers in them.

/// Rows of cells under headings.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        Self {
            headings: headings.into_iter().map(Into::into).collect(),
            rows: vec![],
        }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Aligned columns, the first to the left and the others to the right.
    pub fn text(&self) -> String {
        let rule: Vec<String> = self
            .widths()
            .iter()
            .map(|&width| "-".repeat(width))
            .collect();
        let lines = std::iter::once(&self.headings)
            .chain(std::iter::once(&rule))
            .chain(&self.rows);
        lines
            .map(|cells| {
                let cells: Vec<String> = cells
                    .iter()
                    .zip(self.widths())
                    .enumerate()
                    .map(|(column, (cell, width))| match column {
                        0 => format!("{cell:<width$}"),
                        _ => format!("{cell:>width$}"),
                    })
                    .collect();
                format!("{}\n", cells.join("  ").trim_end())
            })
            .collect()
    }

    /// A Markdown table.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = format!(
            "|---|{}\n",
            "--:|".repeat(self.headings.len().saturating_sub(1))
        );
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.headings) + &rule + &rows
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.headings.len())
            .map(|column| {
                std::iter::once(&self.headings)
                    .chain(&self.rows)
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect()
    }
}

/// A number with three digits or so.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A number or a dash.
pub fn or_dash(value: Option<f64>) -> String {
    value.map_or("-".into(), digits)
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    format!("{}%", digits(100.0 * share))
}

/// Bytes with a decimal unit, as bandwidths have.
pub fn bytes(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut unit = 0;
    let mut value = bytes;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{} {}", digits(value), units[unit])
}

/// Positions as context lengths are written: `8k`.
pub fn positions(positions: usize) -> String {
    match positions >= 1024 && positions.is_multiple_of(1024) {
        true => format!("{}k", positions / 1024),
        false => positions.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_well_in_both_forms() {
        let mut table = Table::new(["method", "us"]);
        table.row(["dense", "1234"]);
        table.row(["|sum q|", "5"]);
        assert_eq!(
            table.text(),
            "method     us\n-------  ----\ndense    1234\n|sum q|     5\n"
        );
        assert_eq!(
            table.markdown(),
            "| method | us |\n|---|--:|\n| dense | 1234 |\n| \\|sum q\\| | 5 |\n"
        );
    }

    #[test]
    fn numbers_have_three_digits_or_so() {
        assert_eq!(
            [digits(0.1234), digits(9.999), digits(12.34), digits(1401.2)],
            ["0.12", "10.0", "12.3", "1401"]
        );
        assert_eq!([bytes(33_554_432.0), bytes(12.0)], ["33.6 MB", "12.0 B"]);
        assert_eq!([positions(8192), positions(1000)], ["8k", "1000"]);
        assert_eq!([or_dash(None), percent(0.983)], ["-", "98.3%"]);
    }
}
