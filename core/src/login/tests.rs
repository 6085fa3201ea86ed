use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_764_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn access(token: &str, left: Option<Duration>) -> AccessMark {
    AccessMark {
        mark: TokenMark::of(token),
        until: left.map(|left| NOW + left),
    }
}

fn file(left: Option<Duration>, refresh: Option<&str>) -> LoginMarks {
    LoginMarks {
        access: Some(access("a", left)),
        refresh: refresh.map(TokenMark::of),
    }
}

#[test]
fn a_token_is_lent_when_it_lives_long_enough_and_refreshed_otherwise() {
    use LoginStep::{Lend, LendRest, LogIn, Refresh};
    let known = LoginMemory::default();
    let over = Some(Duration::ZERO);
    let cases = [
        ("hours left", file(Some(8 * HOUR), Some("r")), HOUR, Lend),
        ("no end", file(None, Some("r")), HOUR, Lend),
        ("no end, no refresh", file(None, None), HOUR, Lend),
        ("29 minutes", file(Some(minutes(29)), Some("r")), HOUR, Refresh),
        (
            "31 minutes, for days",
            file(Some(minutes(31)), Some("r")),
            48 * HOUR,
            Lend,
        ),
        (
            "10 minutes, for 5",
            file(Some(minutes(10)), Some("r")),
            minutes(5),
            Lend,
        ),
        (
            "half a minute, for a second",
            file(Some(minutes(1) / 2), Some("r")),
            Duration::from_secs(1),
            Refresh,
        ),
        ("29 minutes, no refresh", file(Some(minutes(29)), None), HOUR, LendRest),
        ("over", file(over, Some("r")), HOUR, Refresh),
        ("over, no refresh", file(over, None), HOUR, LogIn(WhyLogIn::Ended)),
        ("empty", LoginMarks::default(), HOUR, LogIn(WhyLogIn::Nobody)),
    ];
    for (name, found, limit, step) in cases {
        assert_eq!(next_step(&found, &known, limit, NOW), step, "{name}");
    }
}

#[test]
fn a_refused_refresh_token_is_not_sent_again_and_another_one_is() {
    let refused = LoginMemory {
        refused: Some(TokenMark::of("r")),
        ..LoginMemory::default()
    };
    let rest = file(Some(minutes(20)), Some("r"));
    assert_eq!(next_step(&rest, &refused, HOUR, NOW), LoginStep::LendRest);
    let over = file(Some(Duration::ZERO), Some("r"));
    assert_eq!(
        next_step(&over, &refused, HOUR, NOW),
        LoginStep::LogIn(WhyLogIn::Refused)
    );
    let again = file(Some(Duration::ZERO), Some("r2"));
    assert_eq!(next_step(&again, &refused, HOUR, NOW), LoginStep::Refresh);
}

#[test]
fn a_server_with_short_tokens_is_not_asked_at_every_session() {
    let issued = LoginMemory {
        issued: Some((TokenMark::of("a"), minutes(10))),
        ..LoginMemory::default()
    };
    let step = |left| next_step(&file(Some(left), Some("r")), &issued, HOUR, NOW);
    assert_eq!(step(minutes(6)), LoginStep::Lend);
    assert_eq!(step(minutes(4)), LoginStep::Refresh);
}

#[test]
fn a_refused_session_is_the_tokens_fault_only_when_another_token_helps() {
    let mut memory = LoginMemory::default();
    let found = file(Some(HOUR), Some("r"));
    let ended = access("a", Some(Duration::ZERO));
    assert_eq!(memory.was_refused(&ended, &found, NOW), TokenEnd::Expired);
    assert_eq!(
        memory.was_refused(&access("old", Some(HOUR)), &found, NOW),
        TokenEnd::Replaced
    );
    assert_eq!(memory, LoginMemory::default(), "neither says anything about the login");

    // Two sessions with the same token, which is exchanged, and the next one refused as well.
    let lent = access("a", Some(HOUR));
    for _ in 0..2 {
        assert_eq!(memory.was_refused(&lent, &found, NOW), TokenEnd::Early);
    }
    assert_eq!(next_step(&found, &memory, HOUR, NOW), LoginStep::Refresh);
    let second = access("b", Some(HOUR));
    let renewed = LoginMarks {
        access: Some(second.clone()),
        refresh: Some(TokenMark::of("r2")),
    };
    assert_eq!(next_step(&renewed, &memory, HOUR, NOW), LoginStep::Lend);
    let mut accepted = memory.clone();
    accepted.was_accepted(&second);
    assert_eq!(accepted.was_refused(&second, &renewed, NOW), TokenEnd::Early);
    assert_eq!(memory.was_refused(&second, &renewed, NOW), TokenEnd::LoginRefused);

    let mut alone = LoginMemory::default();
    assert_eq!(
        alone.was_refused(&lent, &file(Some(HOUR), None), NOW),
        TokenEnd::LoginRefused
    );
}

#[test]
fn people_are_told_who_is_logged_in_and_until_when() {
    let state = LoginState {
        account: Some("max".to_owned()),
        until: Some(NOW + HOUR),
        renewable: true,
        exclusive: false,
    };
    assert_eq!(state.words(NOW), "logged in (max), token until 17:00 UTC, then renewed");
    assert_eq!(
        state.words(NOW + HOUR),
        "logged in (max), token renewed for the next session"
    );
    let other = LoginState {
        account: None,
        until: None,
        renewable: false,
        exclusive: true,
    };
    assert_eq!(other.words(NOW), "logged in, one session at a time");
}
