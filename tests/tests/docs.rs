//! The documentation shows the code that there is.

const GUIDE: &str = include_str!("../../docs/adding-a-model.md");

#[test]
fn the_guide_to_adding_a_model_shows_a_family_and_its_line_as_they_are() {
    let file = include_str!("../../models/src/families/mistral.rs");
    assert!(GUIDE.contains(file.trim_end()));
    let table = include_str!("../../models/src/families/mod.rs");
    let line = table
        .lines()
        .find(|line| line.trim_start().starts_with("Mistral:"));
    assert!(GUIDE.contains(line.expect("the table has the family")));
}

#[test]
fn the_table_of_methods_has_all_of_them() {
    let table = include_str!("../../docs/methods.md");
    for name in sparq::Method::names() {
        assert!(table.contains(&format!("`{name}`")), "{name}");
    }
}
