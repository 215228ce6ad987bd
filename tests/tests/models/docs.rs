//! Code and tables in the documentation equal the sources.

const GUIDE: &str = include_str!("../../../docs/adding-a-model.md");

#[test]
fn adding_a_model_shows_a_family_and_its_line() {
    let file = include_str!("../../../models/src/families/mistral.rs");
    assert!(GUIDE.contains(file.trim_end()));
    let table = include_str!("../../../models/src/families/mod.rs");
    let line = table
        .lines()
        .find(|line| line.trim_start().starts_with("Mistral:"));
    assert!(GUIDE.contains(line.expect("the table has the family")));
}

/// Returns the Rust code blocks of a page.
fn code(page: &str) -> Vec<&str> {
    let blocks = page.split("```rust\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().trim_end())
        .collect()
}

#[test]
fn burn_page_shows_the_examples() {
    let examples = [
        include_str!("../../../models/examples/load_converted.rs"),
        include_str!("../../../crates/sparq/examples/swap_attention.rs"),
        include_str!("../../../crates/sparq/examples/convert_record.rs"),
    ];
    // A method is indented in its file but not on the page.
    let lines = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let blocks = code(include_str!("../../../docs/burn.md"));
    assert_eq!(blocks.len(), 4);
    for block in blocks {
        let shown = |example: &str| lines(example).contains(&lines(block));
        assert!(examples.iter().any(|example| shown(example)), "{block}");
    }
}

#[test]
fn methods_page_lists_every_method() {
    let table = include_str!("../../../docs/methods.md");
    for name in sparq::Method::names() {
        assert!(table.contains(&format!("`{name}`")), "{name}");
    }
}
