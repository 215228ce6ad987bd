//! Prose and commands, wrapped for Markdown.

/// The width of a line of Markdown.
const WIDTH: usize = 100;

/// Wraps text at spaces. Later lines begin with `indent`.
pub fn wrap(text: &str, indent: &str) -> String {
    fill(text.split(' '), " ", indent)
}

/// A command as a code block, wrapped before its options.
pub fn command(line: &str) -> String {
    let options = line.replace(" --", "\n--");
    format!("```sh\n{}\n```\n", fill(options.split('\n'), " \\", "    "))
}

/// Joins parts with spaces, and breaks the line where a part does not fit.
fn fill<'a>(parts: impl Iterator<Item = &'a str>, line_end: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for part in parts {
        let line = lines.last_mut().expect("the list begins with a line");
        let fits = line.chars().count() + 1 + part.chars().count() + line_end.len() <= WIDTH;
        match line.is_empty() {
            true => line.push_str(part),
            false if fits => {
                line.push(' ');
                line.push_str(part);
            }
            false => lines.push(format!("{indent}{part}")),
        }
    }
    lines.join(&format!("{}\n", line_end.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_the_width() {
        let text = wrap(&"word ".repeat(50), "  ");
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.len() <= WIDTH));
        assert!(text.lines().skip(1).all(|line| line.starts_with("  word")));
        assert_eq!(wrap("short", ""), "short");
    }

    #[test]
    fn text_command_continues_with_a_backslash() {
        let line = format!("sparq-bench op{}", " --shape 1,32,8,128,4096".repeat(6));
        let block = command(&line);
        assert!(block.starts_with("```sh\nsparq-bench op --shape"));
        assert!(block.contains(" \\\n    --shape") && block.ends_with("4096\n```\n"));
        assert!(block.lines().all(|line| line.len() <= WIDTH));
    }
}
