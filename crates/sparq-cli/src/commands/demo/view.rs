//! [`AnswerLine`]: the lines of the demo, whose columns fill as the answers come.

use anyhow::Result;

use crate::output::{Mark, Output};

/// The width of the column of names.
const NAME_WIDTH: usize = 10;

/// The width of a column of answers: " 123456.", a mark and space.
const ANSWER_WIDTH: usize = 16;

/// A line of the demo: a name and an answer of each method.
pub struct AnswerLine<'a> {
    out: Output,
    name: &'a str,
    /// The finished columns.
    done: String,
    current: String,
}

impl<'a> AnswerLine<'a> {
    /// Prints the headings.
    pub fn header(out: Output, methods: &[&str]) -> Result<()> {
        let columns = methods.iter().map(|name| format!("{name:<ANSWER_WIDTH$}"));
        let columns: Vec<String> = columns.collect();
        out.line(format!("{:NAME_WIDTH$} {:<8} {}", "", "code", columns.join(" ")).trim_end())
    }

    /// Begins a line.
    pub fn new(out: Output, name: &'a str, code: &str) -> Self {
        Self {
            out,
            name,
            done: format!("{code:<8}"),
            current: String::new(),
        }
    }

    /// Adds text to the current column. A terminal shows it at once.
    pub fn push(&mut self, text: &str) -> Result<()> {
        self.current.push_str(text);
        self.redraw()
    }

    /// Ends the current column with a mark.
    pub fn end_column(&mut self, mark: Mark) {
        let answer = self.current.trim().to_owned();
        let shown_mark = self.out.mark(mark);
        // Escape codes of colours take no space on a terminal.
        let mark_width = match self.out.is_terminal() {
            true => 1,
            false => shown_mark.len(),
        };
        let gap = ANSWER_WIDTH.saturating_sub(answer.chars().count() + 1 + mark_width);
        self.done
            .push_str(&format!(" {answer} {shown_mark}{:gap$}", ""));
        self.current.clear();
    }

    /// Ends the line.
    pub fn finish(mut self) -> Result<()> {
        self.current.clear();
        if self.out.is_terminal() {
            self.redraw()?;
            return self.out.line("");
        }
        self.out.line(self.line().trim_end())
    }

    fn line(&self) -> String {
        format!(
            "{:NAME_WIDTH$} {} {}",
            self.name,
            self.done,
            self.current.trim_start()
        )
    }

    fn redraw(&self) -> Result<()> {
        match self.out.is_terminal() {
            true => self.out.text(&format!("\r{}", self.line())),
            false => Ok(()),
        }
    }
}
