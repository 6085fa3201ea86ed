//! Waits and times in the words of failures, as a table: pure, so each has its own now.

use super::*;

/// Saturday, 28 November 2026, 12:00 UTC.
const NOW: Timestamp = Timestamp::from_millis(1_795_867_200_000);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn at(text: &str, heard: LocalTime) -> Option<u64> {
    wait::wait(text, heard).map(|wait| wait.as_secs())
}

#[test]
fn times_are_waited_for() {
    let utc = LocalTime::utc(NOW);
    let dec3 = 5 * DAY + 5 * HOUR;
    let cases = [
        ("You've hit your limit · resets Dec 3 at 5pm (UTC)", Some(dec3)),
        ("You've hit your limit · resets Dec 3 at 5pm", Some(dec3)),
        ("You've hit your limit · resets Dec 3, 5pm (UTC)", Some(dec3)),
        ("resets December 3rd at 5:00 p.m.", Some(dec3)),
        ("resets 3 Dec 2026 17:00 UTC", Some(dec3)),
        (
            "You've hit your usage limit. Try again at Dec 3rd, 2026 5:00 PM.",
            Some(dec3),
        ),
        ("or try again at Dec 3rd, 2026 5:00 PM GMT", Some(dec3)),
        (
            "You've hit your limit · resets Dec 3 at 5pm (Europe/Berlin)",
            Some(dec3 - HOUR),
        ),
        ("resets Dec 3 at 5pm (America/New_York)", Some(dec3 + 5 * HOUR)),
        ("resets Dec 3 at 5pm PST", Some(dec3 + 8 * HOUR)),
        ("resets Dec 3 at 5pm (UTC+2)", Some(dec3 - 2 * HOUR)),
        ("resets Dec 3 at 5pm (GMT-3:30)", Some(dec3 + 3 * HOUR + 30 * MINUTE)),
        ("resets Dec 3", Some(4 * DAY + 12 * HOUR)),
        // The nearest year: in December, January is next year's.
        ("resets Jan 2 at 12pm (UTC)", Some(35 * DAY)),
        // Times of the day: today's, or tomorrow's when that is over.
        ("You've hit your 5-hour limit · resets 1:30pm (UTC)", Some(90 * MINUTE)),
        (
            "You've hit your 5-hour limit · resets 10:24am (UTC)",
            Some(22 * HOUR + 24 * MINUTE),
        ),
        ("resets 3pm", Some(3 * HOUR)),
        ("5-hour limit reached ∙ resets 3pm", Some(3 * HOUR)),
        ("resets at 17:00", Some(5 * HOUR)),
        ("resets at 05:00 UTC", Some(17 * HOUR)),
        ("resets 12am (UTC)", Some(12 * HOUR)),
        ("resets tomorrow at 9am", Some(21 * HOUR)),
        ("resets today at 9pm", Some(9 * HOUR)),
        ("resets Monday at 9am", Some(DAY + 21 * HOUR)),
        ("resets Mon 9:00 AM (UTC)", Some(DAY + 21 * HOUR)),
        ("resets Saturday at 9am", Some(6 * DAY + 21 * HOUR)),
        ("resets Saturday at 1pm", Some(HOUR)),
        // A moment ago: it is over, and not tomorrow's.
        ("resets 11:58am (UTC)", Some(0)),
        // Times as programs write them.
        ("resets at 2026-12-03T17:00:00Z", Some(dec3)),
        ("\"resets_at\": \"2026-12-03T17:00:00.5+01:00\"", Some(dec3 - HOUR)),
        ("available again at 2026-12-03 17:00:00 UTC", Some(dec3)),
        ("retry after 2026-12-03 17:00", Some(dec3)),
        ("resets on 2026-12-03", Some(4 * DAY + 12 * HOUR)),
        ("retry-after: Thu, 03 Dec 2026 17:00:00 GMT", Some(dec3)),
        ("Claude AI usage limit reached|1795870800", Some(HOUR)),
        ("{\"resets_at\":1795870800}", Some(HOUR)),
        ("{\"resetsAt\": 1795870800000}", Some(HOUR)),
        ("x-ratelimit-reset: 1795870800", Some(HOUR)),
        ("limit reached, resets at 1795870800.", Some(HOUR)),
        // Waits from now.
        ("Try again in 3 hours 20 minutes.", Some(3 * HOUR + 20 * MINUTE)),
        (
            "try again in 6 days 4 hours 1 minute",
            Some(6 * DAY + 4 * HOUR + MINUTE),
        ),
        (
            "Your quota will reset after 18h43m22s.",
            Some(18 * HOUR + 43 * MINUTE + 22),
        ),
        ("\"resets_in_seconds\": 3600", Some(HOUR)),
        ("\"retryDelay\": \"37s\"", Some(37)),
        ("please wait 30 seconds", Some(30)),
        // Texts that can be read in two ways, or in none.
        ("resets at 5", None),
        ("resets at 5:00", None),
        ("resets 12/03/2026 at 5pm", None),
        ("resets Dec 3 at 5pm (Middle-earth/Shire)", None),
        ("resets Dec 33 at 5pm", None),
        ("resets at 25:00", None),
        ("resets Nov 3 at 5pm", None),
        ("resets at 2025-12-03T17:00:00Z", None),
        ("resets soon", None),
        ("Please wait and try again later.", None),
        ("try again later", None),
        ("quota 1795870800 used", None),
    ];
    for (text, seconds) in cases {
        assert_eq!(at(text, utc), seconds, "{text}");
    }
}

#[test]
fn a_time_without_a_zone_is_of_the_machine_and_one_with_a_zone_is_not() {
    let in_tokyo = LocalTime {
        now: NOW,
        utc_offset_seconds: 9 * 3600,
    };
    // It is nine in the evening there.
    assert_eq!(at("resets 11pm", in_tokyo), Some(2 * HOUR));
    assert_eq!(
        at("try again at Dec 3rd, 2026 5:00 PM", in_tokyo),
        Some(4 * DAY + 20 * HOUR)
    );
    assert_eq!(at("resets 1:30pm (UTC)", in_tokyo), Some(90 * MINUTE));
    assert_eq!(at("resets at 2026-12-03 17:00:00", in_tokyo), Some(4 * DAY + 20 * HOUR));
}

#[test]
fn summer_time_is_that_of_the_day_that_is_named() {
    // 28 March 2026, 12:00 UTC, in Berlin a day before summer time.
    let heard = LocalTime::utc(Timestamp::from_millis(1_774_699_200_000));
    assert_eq!(at("resets Mar 29 at 9am (Europe/Berlin)", heard), Some(19 * HOUR));
}

#[test]
fn a_wait_that_is_told_in_words_is_kept() {
    let cases = [
        ("HTTP 429: slow down (retry-after: 12)", Some(12_000)),
        ("429 Too Many Requests, \"retry_after\": 1.5", Some(1_500)),
        ("rate limit reached. Please try again in 20s.", Some(20_000)),
        ("rate limit reached, retry in 350ms", Some(350)),
        (
            "You've hit your usage limit. Try again in 1 day 3 hours 20 minutes.",
            Some(98_400_000),
        ),
        (
            "You've hit your usage limit. Try again in 2 hours and 5 minutes",
            Some(7_500_000),
        ),
        ("quota exceeded; resets in 3 h", Some(10_800_000)),
        ("You've hit your usage limit. Try again later.", None),
        ("rate limit: try again in 3 fortnights", None),
        ("rate limit of 40 requests", None),
        // A wait in the words of other failures means nothing.
        ("connection refused, retrying in 5 s", None),
    ];
    for (text, millis) in cases {
        let found = classify("x", text).unwrap();
        assert_eq!(
            found.retry_after,
            millis.map(Duration::from_millis),
            "{text:?}: {found:?}"
        );
    }
}
