//! Numbers as short text.

/// Formats a number with about three significant digits: `0.12`, `12.3`, `1401`.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Formats a number like [`digits`], or a dash if there is none.
pub fn or_dash(value: Option<f64>) -> String {
    value.map_or("-".into(), digits)
}

/// Formats a share as a percentage with about three significant digits: `98.3%`.
pub fn percent(share: f64) -> String {
    format!("{}%", digits(100.0 * share))
}

/// Formats bytes with a decimal unit, the convention of bandwidths: `33.6 MB`.
pub fn bytes(bytes: f64) -> String {
    let (value, unit) = scaled(bytes, 1000.0);
    format!("{} {}", digits(value), ["B", "kB", "MB", "GB", "TB"][unit])
}

/// Formats bytes with a binary unit, the convention of memory: `6.0 MiB`.
pub fn binary_bytes(bytes: f64) -> String {
    match scaled(bytes, 1024.0) {
        (value, 0) => format!("{value:.0} B"),
        (value, unit) => format!("{value:.1} {}", ["B", "KiB", "MiB", "GiB", "TiB"][unit]),
    }
}

/// Divides a number by `base` until it is less or after four times. Returns it and how many times.
fn scaled(mut value: f64, base: f64) -> (f64, usize) {
    let mut unit = 0;
    while value >= base && unit < 4 {
        value /= base;
        unit += 1;
    }
    (value, unit)
}

/// Formats a number of positions as context lengths are usually written: `8k`.
pub fn positions(positions: usize) -> String {
    match positions >= 1024 && positions.is_multiple_of(1024) {
        true => format!("{}k", positions / 1024),
        false => positions.to_string(),
    }
}

/// Formats a share as its reciprocal: `1/21`, and `1` for a whole.
pub fn reciprocal(share: f64) -> String {
    match 1.0 / share {
        whole if whole < 1.05 => "1".into(),
        whole if whole < 10.0 => format!("1/{whole:.1}"),
        whole => format!("1/{whole:.0}"),
    }
}

/// Formats a count with a magnitude: `4.5 M`.
pub fn count(count: usize) -> String {
    match count as f64 {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_about_three() {
        assert_eq!(
            [digits(0.1234), digits(9.999), digits(12.34), digits(1401.2)],
            ["0.12", "10.0", "12.3", "1401"]
        );
        assert_eq!(
            [or_dash(None), percent(0.983), percent(1.0)],
            ["-", "98.3%", "100%"]
        );
    }

    #[test]
    fn units_follow_the_magnitude() {
        assert_eq!([bytes(33_554_432.0), bytes(12.0)], ["33.6 MB", "12.0 B"]);
        assert_eq!(
            [12.0, 1536.0, 6.0 * 1024.0 * 1024.0].map(binary_bytes),
            ["12 B", "1.5 KiB", "6.0 MiB"]
        );
        assert_eq!([positions(8192), positions(1000)], ["8k", "1000"]);
        assert_eq!(
            [1.0, 0.25, 1.0 / 21.0].map(reciprocal),
            ["1", "1/4.0", "1/21"]
        );
        assert_eq!([count(256), count(4_521_984)], ["256", "4.5 M"]);
    }
}
