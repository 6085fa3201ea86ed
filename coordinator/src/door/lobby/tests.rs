use super::*;

const CAPS: Caps = Caps {
    all: 8,
    strangers: 4,
    of_address: 3,
};

fn limits() -> ConnectionLimits {
    ConnectionLimits::default()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn lobby() -> Arc<Lobby> {
    Lobby::new(limits(), CAPS)
}

fn is_cut(guests: &[Arc<Guest>]) -> Vec<bool> {
    guests.iter().map(|guest| guest.cut().is_cancelled()).collect()
}

#[tokio::test]
async fn the_oldest_of_the_same_address_goes_then_the_oldest_of_whoever_has_most() {
    let lobby = lobby();
    let one: Vec<_> = (0..4).map(|_| lobby.enter(ip("10.0.0.1")).unwrap()).collect();
    assert_eq!(is_cut(&one), [true, false, false, false], "three of an address");
    let other = lobby.enter(ip("10.0.0.2")).unwrap();
    let third = lobby.enter(ip("10.0.0.3")).unwrap();
    assert_eq!(is_cut(&one), [true, true, false, false], "four in all");
    assert!(!other.cut().is_cancelled() && !third.cut().is_cancelled());
    drop((one, other, third));
    let seats = lobby.seats();
    assert!(seats.strangers.is_empty() && seats.by_address.is_empty());
    assert_eq!(seats.known, 0);
}

#[tokio::test]
async fn who_said_nothing_goes_before_who_speaks() {
    let lobby = lobby();
    let one: Vec<_> = (0..3).map(|_| lobby.enter(ip("10.0.0.1")).unwrap()).collect();
    one[0].speaks();
    one[0].speaks();
    let more: Vec<_> = (0..2).map(|_| lobby.enter(ip("10.0.0.1")).unwrap()).collect();
    assert_eq!(is_cut(&one), [false, true, true]);
    more.iter().for_each(|guest| guest.speaks());
    let last = lobby.enter(ip("10.0.0.1")).unwrap();
    let cut = is_cut(&one).into_iter().chain(is_cut(&more)).filter(|cut| *cut);
    assert_eq!(
        (cut.count(), last.cut().is_cancelled()),
        (3, false),
        "one of those who speak"
    );
    drop((one, more, last));
    assert!(lobby.seats().by_address.is_empty());
}

/// A fleet behind one address that comes back at once: each connects again when it is cut, and
/// is known when it is left alone for one round of the others.
#[tokio::test]
async fn a_burst_of_honest_callers_beyond_the_places_comes_in() {
    let mut seats = Seats::default();
    let caps = Caps {
        all: 16,
        strangers: 8,
        of_address: 8,
    };
    let (from, mut draw) = (From::of(ip("10.0.0.1")), 0_usize);
    let mut callers: Vec<Option<(u64, CancellationToken, u32)>> = vec![None; 16];
    let mut known = 0;
    for _ in 0..10_000 {
        for caller in &mut callers {
            if caller.as_ref().is_none_or(|(_, cut, _)| cut.is_cancelled()) {
                // Any sequence that is not the order of the callers.
                draw = draw
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let cut = CancellationToken::new();
                let (number, _) = seats.enter(from, cut.clone(), caps, draw >> 33).unwrap();
                seats.speaks(number);
                *caller = Some((number, cut, 0));
            }
        }
        callers.retain_mut(|caller| {
            let Some((number, cut, rounds)) = caller else {
                return true;
            };
            *rounds += 1;
            let is_in = !cut.is_cancelled() && *rounds > 1 && seats.promote(*number);
            known += usize::from(is_in);
            // Those who are known make another room than this test is about.
            seats.known = 0;
            !is_in
        });
        if callers.is_empty() {
            break;
        }
    }
    assert_eq!((known, callers.len()), (16, 0));
}

#[tokio::test]
async fn those_who_are_known_are_not_counted_as_strangers_and_never_cut() {
    let lobby = lobby();
    let known: Vec<_> = (0..8)
        .map(|_| {
            let guest = lobby.enter(ip("10.0.0.1")).unwrap();
            guest.is_known();
            guest.is_known();
            guest
        })
        .collect();
    assert_eq!(lobby.seats().known, 8);
    assert!(
        lobby.enter(ip("10.0.0.2")).is_none(),
        "every place is taken by one who is known"
    );
    assert!(!is_cut(&known).contains(&true));
    drop(known);
    assert_eq!(lobby.seats().known, 0);
    assert!(lobby.enter(ip("10.0.0.2")).is_some());
}

#[tokio::test]
async fn who_was_cut_is_not_known_any_more() {
    let lobby = lobby();
    let guests: Vec<_> = (0..4).map(|_| lobby.enter(ip("10.0.0.1")).unwrap()).collect();
    guests[0].is_known();
    assert_eq!((guests[0].cut().is_cancelled(), lobby.seats().known), (true, 0));
    drop(guests);
    assert_eq!(lobby.seats().known, 0);
}

#[test]
fn a_network_of_ipv6_is_one_address_and_ipv4_is_ipv4_however_it_is_written() {
    let from = |text| From::of(ip(text));
    assert_eq!(from("2001:db8:0:1::1"), from("2001:db8:0:1:ffff::2"));
    assert_ne!(from("2001:db8:0:1::1"), from("2001:db8:0:2::1"));
    assert_eq!(from("::ffff:10.0.0.1"), from("10.0.0.1"));
    assert_ne!(from("10.0.0.1"), from("10.0.0.2"));
}

#[test]
fn what_files_there_are_bounds_the_places() {
    let of = |files| Caps::of(&limits(), files);
    let plenty = of(Some(1 << 20));
    assert_eq!((plenty.all, plenty.strangers), (limits().all, limits().strangers));
    assert_eq!(of(None), plenty);
    let few = of(Some(1024));
    assert_eq!((few.all, few.strangers, few.of_address), (512, 256, 256));
    let none = of(Some(0));
    assert_eq!((none.all, none.strangers, none.of_address), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_does_nothing_goes_a_stranger_soon_and_others_when_no_call_is_open() {
    let lobby = lobby();
    let limits = limits();
    let after = |wait: Duration| Instant::now() + wait;
    let guest = lobby.enter(ip("10.0.0.1")).unwrap();
    assert_eq!(guest.due(Instant::now()), Due::Later(after(limits.first_request)));
    assert_eq!(guest.due(after(limits.first_request)), Due::Now(Cut::NoRequest));
    let call = guest.begin();
    let both = limits.first_request + limits.stranger_request;
    assert_eq!(guest.due(Instant::now()), Due::Later(after(both)));
    assert_eq!(guest.due(after(both)), Due::Now(Cut::NoRequest), "it does not read");

    guest.is_known();
    tokio::time::advance(limits.idle * 3).await;
    assert_eq!(
        guest.due(Instant::now()),
        Due::Later(after(limits.idle)),
        "a call is open"
    );
    drop(call);
    assert_eq!(
        guest.due(Instant::now()),
        Due::Later(after(limits.idle)),
        "it ended just now"
    );
    assert_eq!(guest.due(after(limits.idle)), Due::Now(Cut::Idle));
}
