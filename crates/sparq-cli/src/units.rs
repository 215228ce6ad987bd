//! Numbers for people.

/// Bytes with a binary unit and three digits or so: `6.0 MiB`.
pub fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value:.0} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// A share as its reciprocal: `1/21`, and `1` for everything.
pub fn share(share: f64) -> String {
    match 1.0 / share {
        whole if whole < 1.05 => "1".into(),
        whole if whole < 10.0 => format!("1/{whole:.1}"),
        whole => format!("1/{whole:.0}"),
    }
}

/// A count with a magnitude: `4.5 M`.
pub fn count(count: usize) -> String {
    match count as f64 {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n}"),
    }
}

/// Positions in the way that context lengths are written: `8k`.
pub fn positions(positions: usize) -> String {
    if positions >= 1024 && positions.is_multiple_of(1024) {
        format!("{}k", positions / 1024)
    } else {
        positions.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [bytes(12.0), bytes(1536.0), bytes(6.0 * 1024.0 * 1024.0)],
            ["12 B", "1.5 KiB", "6.0 MiB"]
        );
        assert_eq!(
            [share(1.0), share(0.25), share(1.0 / 21.0)],
            ["1", "1/4.0", "1/21"]
        );
        assert_eq!([count(256), count(4_521_984)], ["256", "4.5 M"]);
        assert_eq!([positions(8192), positions(1000)], ["8k", "1000"]);
    }
}
