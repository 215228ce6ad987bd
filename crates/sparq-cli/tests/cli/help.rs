//! Help texts, completions and the behaviour of standard output.

use crate::support::{contains, document, stdout, words};

const COMMANDS: [&str; 12] = [
    "demo",
    "eval",
    "generate",
    "inspect",
    "logits",
    "convert",
    "plan",
    "attention",
    "report",
    "serve",
    "check",
    "completions",
];

#[test]
fn help_has_exit_codes_and_examples() {
    let help = stdout("--help");
    contains(&help, &["Examples:", "Exit codes:", "--json", "--device"]);
    contains(&help, &COMMANDS);
    for command in COMMANDS {
        contains(&stdout(&format!("{command} --help")), &["Examples:"]);
    }
}

#[test]
fn help_examples_parse() {
    // With --help appended, a valid command line prints the help and an invalid one fails.
    let mut tried = 0;
    for command in std::iter::once("").chain(COMMANDS) {
        let help = stdout(&format!("{command} --help"));
        let examples = help.split("Examples:").nth(1).unwrap();
        for line in examples.lines().map(str::trim) {
            if let Some(example) = line.strip_prefix("sparq") {
                let without_comment = example.split("  ").next().unwrap();
                let arguments = without_comment.split(" > ").next().unwrap();
                stdout(&format!("{arguments} --help"));
                tried += 1;
            }
        }
    }
    assert!(tried >= 15, "{tried}");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let line = format!("completions {shell}");
        let script = stdout(&line);
        contains(&script, &COMMANDS);
        assert_eq!(document(&line)["script"], script);
    }
}

#[test]
fn closed_pipe_is_not_an_error() {
    // The reader closes the pipe before the program writes.
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let mut child = std::process::Command::new(program)
        .args(words("completions bash"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.is_empty(), "{message}");
}
