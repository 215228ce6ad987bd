//! The demo on a terminal and in a file: two columns that fill as the answers come, and the table at the end.

use anyhow::Result;

use crate::output::{Mark, Output};

/// Width of the column of names.
const NAME_WIDTH: usize = 10;

/// Width of an answer's column: " 123456." and its mark, and a little air.
const ANSWER_WIDTH: usize = 16;

/// A line of the contest: a name and an answer per method.
pub struct AnswerLine<'a> {
    out: Output,
    name: &'a str,
    /// Finished columns as text, with their width on the screen.
    done: String,
    current: String,
}

impl<'a> AnswerLine<'a> {
    /// The line over the answers.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn header(out: Output, methods: &[&str]) -> Result<()> {
        let columns: Vec<String> = methods
            .iter()
            .map(|method| format!("{method:<ANSWER_WIDTH$}"))
            .collect();
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

    /// Adds text to the current column; on a terminal it is seen at once.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub fn push(&mut self, text: &str) -> Result<()> {
        self.current.push_str(text);
        self.redraw()
    }

    /// Ends the current column with a mark.
    pub fn end_column(&mut self, mark: Mark) {
        let answer = self.current.trim().to_owned();
        let shown_mark = self.out.mark(mark);
        // The colour takes no room on the screen, so that the width is counted without it.
        let mark_width = if self.out.is_terminal() {
            1
        } else {
            shown_mark.len()
        };
        let gap = ANSWER_WIDTH.saturating_sub(answer.chars().count() + 1 + mark_width);
        self.done
            .push_str(&format!(" {answer} {shown_mark}{:gap$}", ""));
        self.current.clear();
    }

    /// Ends the line.
    ///
    /// # Errors
    /// When standard output can't be written.
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
        if self.out.is_terminal() {
            self.out.text(&format!("\r{}", self.line()))
        } else {
            Ok(())
        }
    }
}
