//! Rules of style that a program can check: see CONTRIBUTING.md.

use std::fs;
use std::path::{Path, PathBuf};

/// The longest line of Rust, in characters.
const MAX_RUST_LINE: usize = 120;
/// The longest line of a comment or of Markdown prose, in characters.
const MAX_PROSE_LINE: usize = 100;
/// The longest function, in lines.
const MAX_FUNCTION: usize = 120;
/// The longest name of a test, in characters.
const MAX_TEST_NAME: usize = 50;

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("a folder of the workspace")
        .to_owned()
}

/// Returns the files of the repository with this extension, except build output and hidden folders.
fn files(extension: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "carry" {
                    walk(&path, extension, found);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), extension, &mut found);
    assert!(
        !found.is_empty(),
        "no *.{extension} below {}",
        root().display()
    );
    found
}

/// Fails with every finding of `check`, which maps a file's text to (line number, message) pairs.
fn expect_none(extension: &str, check: impl Fn(&str) -> Vec<(usize, String)>) {
    let mut findings = Vec::new();
    for (path, text) in files(extension) {
        let path = path.strip_prefix(root()).unwrap().display().to_string();
        let found = check(&text).into_iter();
        findings.extend(found.map(|(line, message)| format!("{path}:{line}: {message}")));
    }
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Returns the text of a comment line without its marker, or `None` for a line of code.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim_start())
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

#[test]
fn rust_lines_fit() {
    expect_none("rs", |text| {
        let long = |line: &str| {
            let (count, prose) = (line.chars().count(), comment(line));
            // A link or a table cannot be wrapped.
            let fixed = prose.is_some_and(|text| text.starts_with('|') || text.contains("://"));
            count > MAX_RUST_LINE || (prose.is_some() && !fixed && count > MAX_PROSE_LINE)
        };
        let found = numbered(text).filter(|(_, line)| long(line));
        found
            .map(|(number, line)| (number, format!("{} columns", line.chars().count())))
            .collect()
    });
}

#[test]
fn comments_begin_with_their_subject() {
    expect_none("rs", |text| {
        let starts = |line: &str| {
            comment(line)
                .is_some_and(|text| text.starts_with("What ") || text.starts_with("What's "))
        };
        let found = numbered(text).filter(|(_, line)| starts(line));
        found
            .map(|(number, line)| (number, line.trim().to_owned()))
            .collect()
    });
}

/// Returns the (first line, name, lines) of every function; rustfmt closes it at its own indent.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.split(['(', '<', ' ']).filter(|word| !word.is_empty());
        let mut words = words.skip_while(|word| *word != "fn").skip(1);
        let (Some(name), None) = (words.next(), comment(line)) else {
            continue;
        };
        let close = format!("{}}}", " ".repeat(indent));
        let rest = &lines[first..];
        let signature = rest.iter().position(|line| line.ends_with(['{', ';', '}']));
        if signature.is_some_and(|end| rest[end].ends_with('{')) {
            let end = rest.iter().position(|line| *line == close);
            found.push((
                first + 1,
                name.to_owned(),
                end.map_or(usize::MAX, |end| end + 1),
            ));
        }
    }
    found
}

#[test]
fn functions_fit_on_a_screen() {
    expect_none("rs", |text| {
        let long = functions(text)
            .into_iter()
            .filter(|(.., lines)| *lines > MAX_FUNCTION);
        long.map(|(number, name, lines)| (number, format!("{name} has {lines} lines")))
            .collect()
    });
}

#[test]
fn names_of_tests_are_short() {
    expect_none("rs", |text| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let is_test = |number: usize| {
            let before = lines[..number - 1].iter().rev();
            before
                .take_while(|line| line.starts_with("#["))
                .any(|line| *line == "#[test]")
        };
        let long = functions(text).into_iter();
        let long = long.filter(|(number, name, _)| name.len() > MAX_TEST_NAME && is_test(*number));
        long.map(|(number, name, _)| (number, name)).collect()
    });
}

#[test]
fn readme_is_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(
        readme.lines().count() <= 170,
        "{} lines",
        readme.lines().count()
    );
    let code = readme.lines().position(|line| line.starts_with("```"));
    assert!(
        code.is_some_and(|line| line < 60),
        "first code in line {code:?}"
    );
    let long = readme.lines().find(|line| line.chars().count() > 300);
    assert_eq!(long, None);
}

#[test]
fn links_lead_somewhere() {
    for (path, text) in files("md") {
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            let file = target.split('#').next().unwrap();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            let file = path.parent().unwrap().join(file);
            assert!(file.exists(), "{}: {target}", path.display());
        }
    }
}
