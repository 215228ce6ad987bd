//! Date, commit and command of a result.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The current time in UTC: `2026-01-31T23:59:59Z`.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    timestamp(since.map(|since| since.as_secs()).unwrap_or(0))
}

/// Formats seconds since 1970 as a date and time in UTC.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    format!(
        "{year}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        month + 1,
        day + 1,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The commit of the repository that contains the current folder, followed by `+changes` if tracked
/// files differ from it. `None` without git or a repository.
pub fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(match changed.is_empty() {
        true => commit,
        false => format!("{commit}+changes"),
    })
}

/// The command line to repeat a run: `program` and its arguments, quoted for a shell.
pub fn command(program: &str, arguments: impl IntoIterator<Item = String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,.:/@%".contains(c);
    arguments
        .into_iter()
        .fold(program.to_owned(), |line, argument| {
            match !argument.is_empty() && argument.chars().all(plain) {
                true => format!("{line} {argument}"),
                false => format!("{line} '{}'", argument.replace('\'', r"'\''")),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_dates_have_leap_years() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn provenance_command_is_quoted_for_a_shell() {
        let arguments = ["--shape", "1,2", "a b", "it's"].map(String::from);
        assert_eq!(
            command("sparq-bench op", arguments),
            r"sparq-bench op --shape 1,2 'a b' 'it'\''s'"
        );
    }
}
