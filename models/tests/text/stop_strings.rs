//! `StopStrings`: the end of a text.

use proptest::prelude::*;
use sparq_models::text::{EmptyStopString, StopStrings};

#[test]
fn prefix_of_a_stop_string_is_held_back() {
    let mut stops = StopStrings::new(["<end>", "###"]).unwrap();
    let mut push = |text: &str| {
        let released = stops.push(text);
        (released.text, released.stop)
    };
    assert_eq!(push("a<e"), ("a".to_owned(), None));
    assert_eq!(push("n"), (String::new(), None));
    assert_eq!(push("<en"), ("<en".to_owned(), None));
    assert_eq!(push("d> #"), (String::new(), Some(0)));
    assert_eq!(push("more"), (String::new(), None));
    assert_eq!(stops.finish(), "");
}

#[test]
fn finish_returns_the_text_held_back() {
    let mut stops = StopStrings::new(["###"]).unwrap();
    assert_eq!(stops.push("a##").text, "a");
    assert_eq!(stops.finish(), "##");
}

#[test]
fn hidden_text_is_searched_but_not_shown() {
    let mut stops = StopStrings::new(["<a>b", "##"]).unwrap();
    assert_eq!(stops.push("x#").text, "x");
    // The hidden text parts the two characters of a stop string.
    assert_eq!(stops.push_hidden("<a>").text, "#");
    assert_eq!(stops.push("cd").text, "cd");
    assert_eq!(stops.push_hidden("<a>").text, "");
    let released = stops.push("b");
    assert_eq!((released.text.as_str(), released.stop), ("", Some(0)));

    let mut stops = StopStrings::new(["<a><b>c"]).unwrap();
    assert_eq!(stops.push("1").text, "1");
    assert_eq!(stops.push_hidden("<a>").text, "");
    assert_eq!(stops.push_hidden("<b>").text, "");
    assert_eq!(stops.finish(), "");
}

#[test]
fn first_complete_stop_string_ends_the_text() {
    let mut stops = StopStrings::new(["abcd", "bc"]).unwrap();
    let released = stops.push("xabcd");
    assert_eq!((released.text.as_str(), released.stop), ("xa", Some(1)));

    let mut stops = StopStrings::new(["bc", "abc"]).unwrap();
    let released = stops.push("xabc");
    assert_eq!((released.text.as_str(), released.stop), ("x", Some(1)));
}

#[test]
fn empty_stop_string_is_refused() {
    assert_eq!(
        StopStrings::new(["a", ""]).unwrap_err(),
        EmptyStopString { index: 1 }
    );
}

proptest! {
    #[test]
    fn result_is_independent_of_the_pieces(
        text in "[ab\u{e9}]{0,24}",
        stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut borders: Vec<usize> = cuts
            .iter()
            .map(|cut| text.floor_char_boundary(cut.index(text.len() + 1)))
            .chain([0, text.len()])
            .collect();
        borders.sort_unstable();
        let mut filter = StopStrings::new(stops.clone()).unwrap();
        let (mut shown, mut stop) = (String::new(), None);
        for pair in borders.windows(2) {
            let released = filter.push(&text[pair[0]..pair[1]]);
            shown += &released.text;
            stop = stop.or(released.stop);
        }
        shown += &filter.finish();

        // The first end at which a stop string completes, and the longest one there.
        let expected = text
            .char_indices()
            .map(|(at, char)| at + char.len_utf8())
            .find_map(|end| {
                let complete = (0..stops.len()).filter(|&i| text[..end].ends_with(&stops[i]));
                let index = complete.min_by_key(|&i| (std::cmp::Reverse(stops[i].len()), i))?;
                Some((text[..end - stops[index].len()].to_owned(), Some(index)))
            })
            .unwrap_or((text.clone(), None));
        prop_assert_eq!((shown, stop), expected);
    }
}
