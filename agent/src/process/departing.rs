//! The states of a warden that is about to end, and the transitions by what is observed. Pure: the
//! keeper observes, kills, sweeps and reports.
//!
//! ```text
//! Ending --ended by itself-----------------------------------> Ended --> told
//!   |  '--ended badly-------------------.
//!   '--stopped, traced, late--> Lost --reaped--> Left --sweeps--> told --> quiet, or it hangs
//! ```

use std::time::{Duration, Instant};

use super::WardenLoss;
use super::tree::Killed;

/// How long killing may take before the remaining processes are reported. Killing continues after
/// that, unless the same processes remained in the sweep before.
pub(super) const KILLING: Duration = Duration::from_secs(20);
/// Consecutive sweeps that must find nothing before a lost warden's processes count as gone. A
/// single sweep can miss a program that starts the next one and exits, when process numbers wrap
/// around meanwhile.
const QUIET: u32 = 2;

/// A warden that is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departing {
    /// It is expected to exit by itself; after this time it is lost.
    Ending { by: Instant },
    /// It has to be killed, and is not reaped yet.
    Lost(Loss),
    /// It is reaped, so its children are now ours. (A zombie as its first thread would not show
    /// that: while another thread lives, children stay.)
    Left(Loss, Sweeps),
    /// It exited as expected.
    Ended,
}

/// How and when a warden was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) how: WardenLoss,
    pub(super) since: Instant,
}

/// The results of the sweeps after a loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sweeps {
    /// A sweep killed everything that it found.
    all_killed: bool,
    /// How many in a row found nothing, but for processes of other users, which nothing here can end.
    quiet: u32,
    /// The remaining processes were killed and hang in the kernel: another signal is useless.
    hangs: bool,
}

/// What an observation of a warden shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It was reaped now, and how it ended if not as it should.
    Reaped(Option<WardenLoss>),
    /// It still exists, and what blocks it.
    There(Option<WardenLoss>),
}

/// The result of a warden's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Departed {
    /// Why it did not end as it should, if so.
    pub(super) loss: Option<WardenLoss>,
    /// Processes that could not be killed after its end.
    pub(super) survivors: u32,
}

impl Departing {
    /// A warden that is expected to exit within some time, or is known to be lost.
    pub(super) fn new(now: Instant, within: Duration, loss: Option<WardenLoss>) -> Self {
        match loss {
            Some(how) => Self::Lost(Loss { how, since: now }),
            None => Self::Ending { by: now + within },
        }
    }

    /// True until it is reaped.
    pub(super) const fn is_there(self) -> bool {
        matches!(self, Self::Ending { .. } | Self::Lost(_))
    }

    /// It did not end as it should.
    pub(super) const fn is_lost(self) -> bool {
        matches!(self, Self::Lost(_) | Self::Left(..))
    }

    /// True when it was lost and its processes can still be killed.
    pub(super) const fn is_owed(self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Left(_, sweeps) => sweeps.quiet < QUIET && !sweeps.hangs,
            Self::Ending { .. } | Self::Ended => false,
        }
    }

    /// The state after a look.
    #[must_use]
    pub(super) fn looked(self, look: Look, now: Instant) -> Self {
        match (self, look) {
            (Self::Ending { .. }, Look::Reaped(None)) => Self::Ended,
            (Self::Ending { .. }, Look::Reaped(Some(how))) => Self::Left(Loss { how, since: now }, Sweeps::default()),
            (Self::Lost(loss), Look::Reaped(_)) => Self::Left(loss, Sweeps::default()),
            (Self::Ending { by }, Look::There(trouble)) => {
                let late = (now >= by).then_some(WardenLoss::Silent);
                match trouble {
                    // It ended since it was waited for.
                    Some(WardenLoss::Ended) => self,
                    trouble => trouble
                        .or(late)
                        .map_or(self, |how| Self::Lost(Loss { how, since: now })),
                }
            }
            (Self::Lost(_), Look::There(_)) | (Self::Left(..) | Self::Ended, _) => self,
        }
    }

    /// The state after a sweep that began after the last observation. `same`: the sweep and the one
    /// before it found only processes that they could not kill.
    #[must_use]
    pub(super) fn swept(self, killed: &Killed, same: bool, now: Instant) -> Self {
        let Self::Left(loss, mut sweeps) = self else {
            return self;
        };
        sweeps.all_killed |= killed.complete && killed.left.is_empty();
        sweeps.quiet = match killed.complete && killed.found == killed.refused {
            true => sweeps.quiet + 1,
            false => 0,
        };
        sweeps.hangs |= same && loss.is_old(now);
        Self::Left(loss, sweeps)
    }

    /// The outcome to report by now. `left`: processes that the last sweep could not kill.
    pub(super) fn outcome(self, left: usize, now: Instant) -> Option<Departed> {
        let (loss, all_killed) = match self {
            Self::Ending { .. } => return None,
            Self::Ended => {
                return Some(Departed {
                    loss: None,
                    survivors: 0,
                });
            }
            Self::Lost(loss) => (loss, false),
            Self::Left(loss, sweeps) => (loss, sweeps.all_killed),
        };
        (!self.is_owed() || loss.is_old(now)).then(|| Departed {
            loss: Some(loss.how),
            survivors: match all_killed {
                true => 0,
                false => u32::try_from(left.max(1)).unwrap_or(u32::MAX),
            },
        })
    }
}

impl Loss {
    fn is_old(self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= KILLING
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_seen_of_a_warden_decides_what_it_is() {
        let now = Instant::now();
        let (ending, late) = (now + SECOND, now);
        let loss = |how| Loss { how, since: now };
        let left = |how| Departing::Left(loss(how), Sweeps::default());
        let before = Loss {
            how: WardenLoss::Traced,
            since: now.checked_sub(SECOND).unwrap(),
        };
        let (lost, left_before) = (Departing::Lost(before), Departing::Left(before, Sweeps::default()));
        let in_time = Departing::Ending { by: ending };
        let too_late = Departing::Ending { by: late };
        for (state, look, then) in [
            (in_time, Look::Reaped(None), Departing::Ended),
            (too_late, Look::Reaped(None), Departing::Ended),
            (
                in_time,
                Look::Reaped(Some(WardenLoss::Killed(9))),
                left(WardenLoss::Killed(9)),
            ),
            (in_time, Look::There(None), in_time),
            (
                in_time,
                Look::There(Some(WardenLoss::Stopped)),
                Departing::Lost(loss(WardenLoss::Stopped)),
            ),
            // The next look reaps it, and knows how it ended.
            (in_time, Look::There(Some(WardenLoss::Ended)), in_time),
            (too_late, Look::There(Some(WardenLoss::Ended)), too_late),
            (too_late, Look::There(None), Departing::Lost(loss(WardenLoss::Silent))),
            (
                too_late,
                Look::There(Some(WardenLoss::Traced)),
                Departing::Lost(loss(WardenLoss::Traced)),
            ),
            // The first cause of the loss is reported.
            (lost, Look::There(Some(WardenLoss::Stopped)), lost),
            (lost, Look::Reaped(Some(WardenLoss::Killed(9))), left_before),
            (lost, Look::Reaped(None), left_before),
            (left_before, Look::There(None), left_before),
            (
                Departing::Ended,
                Look::Reaped(Some(WardenLoss::Ended)),
                Departing::Ended,
            ),
        ] {
            assert_eq!(state.looked(look, now), then, "{state:?} {look:?}");
        }
    }

    fn killed(found: usize, refused: usize, left: usize) -> Killed {
        let this = tree::this_process().unwrap();
        Killed {
            found,
            refused,
            left: vec![this.process(); left],
            complete: true,
        }
    }

    #[test]
    fn what_nothing_can_end_is_told_and_then_let_be() {
        let (early, late) = (Duration::ZERO, KILLING + SECOND);
        let unseen = || Killed {
            complete: false,
            ..killed(0, 0, 0)
        };
        // The time since the loss; the result of each sweep; after each, whether another sweep is
        // needed and how many survivors are reported.
        type Sweep = (Killed, bool, Option<u32>);
        let cases: [(&str, Duration, Vec<Sweep>); 9] = [
            (
                "it left nothing",
                early,
                vec![(killed(0, 0, 0), true, None), (killed(0, 0, 0), false, Some(0))],
            ),
            (
                "all that it left is killed",
                early,
                vec![
                    (killed(3, 0, 0), true, None),
                    (killed(0, 0, 0), true, None),
                    (killed(1, 0, 0), true, None),
                    (killed(0, 0, 0), true, None),
                    (killed(0, 0, 0), false, Some(0)),
                ],
            ),
            (
                "another user's stays",
                early,
                vec![
                    (killed(2, 1, 1), true, None),
                    (killed(1, 1, 1), true, None),
                    (killed(1, 1, 1), false, Some(1)),
                ],
            ),
            (
                "something of ours hangs, and may end yet",
                early,
                vec![(killed(1, 0, 1), true, None), (killed(1, 0, 1), true, None)],
            ),
            (
                "something of ours hangs for long",
                late,
                vec![(killed(1, 0, 1), true, Some(1)), (killed(1, 0, 1), false, Some(1))],
            ),
            (
                "there is always something else",
                late,
                vec![
                    (killed(1, 0, 1), true, Some(1)),
                    (killed(2, 0, 2), true, Some(2)),
                    (killed(3, 0, 3), true, Some(3)),
                ],
            ),
            (
                "one hangs for long, and others come",
                late,
                vec![
                    (killed(2, 0, 1), true, Some(1)),
                    (killed(2, 0, 1), true, Some(1)),
                    (killed(1, 0, 1), false, Some(1)),
                ],
            ),
            (
                "all was killed once, and more came",
                late,
                vec![(killed(5, 0, 0), true, Some(0)), (killed(5, 0, 5), true, Some(0))],
            ),
            (
                "nothing can be seen",
                late,
                vec![(unseen(), true, Some(1)), (unseen(), true, Some(1))],
            ),
        ];
        for (what, ago, sweeps) in cases {
            let since = Instant::now();
            let now = since + ago;
            let how = WardenLoss::Killed(9);
            let mut state = Departing::Left(Loss { how, since }, Sweeps::default());
            let mut before = Vec::new();
            for (killed, owed, survivors) in sweeps {
                let same = killed.is_same_rest(&before);
                before.clone_from(&killed.left);
                state = state.swept(&killed, same, now);
                assert_eq!(state.is_owed(), owed, "{what}: {killed:?}");
                let told = state.outcome(killed.left.len(), now);
                assert_eq!(told.map(|told| told.survivors), survivors, "{what}: {killed:?}");
                assert!(told.is_none_or(|told| told.loss == Some(how)), "{what}");
            }
        }
    }

    #[test]
    fn one_that_is_still_there_is_told_of_only_when_killing_it_takes_too_long() {
        let since = Instant::now();
        let how = WardenLoss::Silent;
        let lost = Departing::Lost(Loss { how, since });
        assert!(lost.is_owed() && lost.is_there() && lost.is_lost());
        assert_eq!(
            lost.swept(&killed(0, 0, 0), false, since),
            lost,
            "its children are not ours yet"
        );
        assert_eq!(lost.outcome(0, since), None);
        let told = Departed {
            loss: Some(how),
            survivors: 1,
        };
        assert_eq!(lost.outcome(0, since + KILLING), Some(told));
        let ending = Departing::new(since, SECOND, None);
        assert_eq!((ending.is_owed(), ending.outcome(0, since + KILLING)), (false, None));
        let well = Departed {
            loss: None,
            survivors: 0,
        };
        assert_eq!(Departing::Ended.outcome(3, since), Some(well));
        assert!(!Departing::Ended.is_owed() && !Departing::Ended.is_there());
    }
}
