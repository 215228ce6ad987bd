//! Formatting the current date for templates.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Formats `time`, in UTC, like Python's `strftime` in the C locale.
///
/// Supports `%Y %y %m %d %e %j %B %b %h %A %a %w %H %I %M %S %p %F %T %D %Z %z %%`, and these with
/// `%-`. The error is the unsupported directive.
pub(super) fn strftime(time: SystemTime, format: &str) -> Result<String, String> {
    let now = CivilTime::from_utc(time);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(char) = rest.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        // `%-d` is `%d` without the leading zero.
        let (bare, directive) = match rest.next() {
            Some('-') => (true, rest.next()),
            other => (false, other),
        };
        let text = directive.and_then(|directive| now.field(directive));
        match (text, directive) {
            (Some(text), _) if bare => out.push_str(match text.trim_start_matches(['0', ' ']) {
                "" => "0",
                stripped => stripped,
            }),
            (Some(text), _) => out.push_str(&text),
            (None, Some(directive)) => return Err(format!("%{directive}")),
            (None, None) => return Err("% at the end".to_owned()),
        }
    }
    Ok(out)
}

/// A moment in the Gregorian calendar, in UTC.
struct CivilTime {
    year: i64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: i64,
    /// 1 to 366.
    day_of_year: i64,
    /// 0 is Sunday.
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

impl CivilTime {
    fn from_utc(time: SystemTime) -> Self {
        let seconds = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_secs() as i64,
            Err(before) => -(before.duration().as_secs_f64().ceil() as i64),
        };
        let days = seconds.div_euclid(86_400);
        let second_of_day = seconds.rem_euclid(86_400);

        // Counts years from 1 March, so that the leap day is the last day of a year. 400 years have
        // 146,097 days.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year =
            day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let months_since_march = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * months_since_march + 2) / 5 + 1;
        let month = (months_since_march + 2) % 12 + 1;
        let year = year_of_era + era * 400 + i64::from(month <= 2);

        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year = match month <= 2 {
            true => day_of_march_year - 305,
            false => day_of_march_year + 60 + i64::from(leap),
        };
        Self {
            year,
            month: month as usize,
            day,
            day_of_year,
            weekday: (days + 4).rem_euclid(7) as usize,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let month = MONTHS[self.month - 1];
        let weekday = WEEKDAYS[self.weekday];
        let text = match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{:02}", (self.hour + 11) % 12 + 1),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'D' => format!(
                "{:02}/{:02}/{:02}",
                self.month,
                self.day,
                self.year.rem_euclid(100)
            ),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        };
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn strftime_matches_python() {
        // python3 -c "import datetime as d; print(d.datetime.fromtimestamp(S, d.UTC)
        // .strftime('%Y-%m-%d %j %a %H:%M:%S %I %p'))"
        for (seconds, expected) in [
            (0, "1970-01-01 001 Thu 00:00:00 12 AM"),
            (951_782_400, "2000-02-29 060 Tue 00:00:00 12 AM"),
            (978_307_199, "2000-12-31 366 Sun 23:59:59 11 PM"),
            (1_721_995_200, "2024-07-26 208 Fri 12:00:00 12 PM"),
            (4_107_542_399, "2100-02-28 059 Sun 23:59:59 11 PM"),
            (4_107_542_400, "2100-03-01 060 Mon 00:00:00 12 AM"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(
                strftime(time, "%Y-%m-%d %j %a %H:%M:%S %I %p").as_deref(),
                Ok(expected)
            );
        }
    }

    #[test]
    fn strftime_accepts_times_before_1970() {
        let time = UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!(
            strftime(time, "%F %T").as_deref(),
            Ok("1969-12-31 23:59:59")
        );
    }

    #[test]
    fn strftime_names_an_unknown_directive() {
        assert_eq!(strftime(UNIX_EPOCH, "%d %Q"), Err("%Q".to_owned()));
        assert_eq!(strftime(UNIX_EPOCH, "100%"), Err("% at the end".to_owned()));
        assert_eq!(
            strftime(UNIX_EPOCH, "%-d %-m %-H 100%%").as_deref(),
            Ok("1 1 0 100%")
        );
    }
}
