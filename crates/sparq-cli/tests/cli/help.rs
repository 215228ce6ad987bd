//! Help texts, completions and the behaviour of standard output.

use crate::support::{document, sparq, stdout};

const COMMANDS: [&str; 11] = [
    "demo",
    "eval",
    "generate",
    "inspect",
    "logits",
    "convert",
    "plan",
    "attention",
    "report",
    "check",
    "completions",
];

#[test]
fn help_has_exit_codes_and_examples() {
    let help = stdout(&["--help"]);
    for part in ["Examples:", "Exit codes:", "--json", "--device"] {
        assert!(help.contains(part), "{help}");
    }
    for command in COMMANDS {
        assert!(help.contains(command), "{help}");
        assert!(
            stdout(&[command, "--help"]).contains("Examples:"),
            "{command}"
        );
    }
}

#[test]
fn help_examples_parse() {
    // With --help appended, a valid command line prints the help and an invalid one fails.
    let mut tried = 0;
    for command in std::iter::once("").chain(COMMANDS) {
        let arguments: Vec<&str> = [command, "--help"]
            .into_iter()
            .filter(|argument| !argument.is_empty())
            .collect();
        let help = stdout(&arguments);
        let examples = help.split("Examples:").nth(1).unwrap();
        for line in examples
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("sparq"))
        {
            let line = line
                .split("  ")
                .next()
                .unwrap()
                .split(" > ")
                .next()
                .unwrap();
            // No example has a quote inside a word.
            let words: Vec<String> = line
                .split('\'')
                .enumerate()
                .flat_map(|(index, part)| {
                    if index % 2 == 1 {
                        vec![part.to_owned()]
                    } else {
                        part.split_whitespace().map(str::to_owned).collect()
                    }
                })
                .collect();
            assert!(
                sparq()
                    .args(&words[1..])
                    .arg("--help")
                    .output()
                    .unwrap()
                    .status
                    .success(),
                "{line}"
            );
            tried += 1;
        }
    }
    assert!(tried >= 15, "{tried}");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        assert!(
            COMMANDS.iter().all(|command| script.contains(command)),
            "{shell}"
        );
        assert_eq!(document(&["completions", shell])["script"], script);
    }
}

#[test]
fn closed_pipe_is_not_an_error() {
    // The reader closes the pipe before the program writes.
    let program = assert_cmd::cargo::cargo_bin("sparq");
    let mut child = std::process::Command::new(program)
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
