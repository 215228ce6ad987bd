//! Tables: aligned text for a terminal, Markdown for documents, cells with sort keys for HTML.

/// Rows of cells under headings. The first column holds names, the others numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The headings.
    pub headings: Vec<String>,
    /// The rows. A row with fewer cells than headings ends early.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// The text shown.
    pub text: String,
    /// The number to sort by instead of the text.
    pub value: Option<f64>,
}

impl Cell {
    /// Creates a cell that sorts by `value`.
    pub fn number(text: impl Into<String>, value: f64) -> Self {
        Self {
            text: text.into(),
            value: Some(value),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            value: None,
        }
    }
}

impl Table {
    /// Creates an empty table.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        Self {
            headings: headings.into_iter().map(Into::into).collect(),
            rows: vec![],
        }
    }

    /// Adds a row.
    pub fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Returns whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Renders lines of aligned columns: the first to the left, the others to the right.
    pub fn text(&self) -> String {
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = self.lines().filter_map(|line| line.get(column).copied());
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        let mut lines: Vec<Vec<&str>> = self.lines().collect();
        lines.insert(1, rules.iter().map(String::as_str).collect());
        let align = |(column, (cell, &width)): (usize, (&str, &usize))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        };
        let render = |line: Vec<&str>| {
            let cells = line.into_iter().zip(&widths).enumerate().map(align);
            let cells: Vec<String> = cells.collect();
            format!("{}\n", cells.join("  ").trim_end())
        };
        lines.into_iter().map(render).collect()
    }

    /// Renders a Markdown table.
    pub fn markdown(&self) -> String {
        let render = |line: Vec<&str>| {
            let cells: Vec<String> = line.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut lines: Vec<String> = self.lines().map(render).collect();
        let rules = "--:|".repeat(self.headings.len().saturating_sub(1));
        lines.insert(1, format!("|---|{rules}\n"));
        lines.concat()
    }

    /// The headings, then the rows, as text.
    fn lines(&self) -> impl Iterator<Item = Vec<&str>> {
        let rows = self.rows.iter();
        let rows = rows.map(|row| row.iter().map(|cell| cell.text.as_str()).collect());
        std::iter::once(self.headings.iter().map(String::as_str).collect()).chain(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_markdown_show_all_cells() {
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
    fn text_ends_short_rows_early() {
        let mut table = Table::new(["case", "share", "saved"]);
        table.row(["a", "1"]);
        assert_eq!(
            table.text(),
            "case  share  saved\n----  -----  -----\na         1\n"
        );
    }
}
