//! The stat of a file, and whether it vouches for the file's content. It opens nothing.

use std::time::{Duration, SystemTime};

use git2::{IndexEntry, IndexTime};

/// Two changes within a tick of the file system's clock have the same time.
const TICK: Duration = Duration::from_millis(20);

/// The tick on file systems whose times have no fraction.
const COARSE_TICK: Duration = Duration::from_secs(2);

/// The stat of a file, in the precision of git's index. Equal stats mean an unchanged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    modified: (u32, u32),
    changed: (u32, u32),
    inode: u32,
    size: u32,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "only compared for equality, in the precision of git's index"
)]
impl Stat {
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            modified: (stat.st_mtime as u32, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime as u32, stat.st_ctime_nsec as u32),
            inode: stat.st_ino as u32,
            size: stat.st_size as u32,
        }
    }

    pub(super) fn of_index(item: &IndexEntry) -> Self {
        let time = |time: &IndexTime| (time.seconds() as u32, time.nanoseconds());
        Self {
            modified: time(&item.mtime),
            changed: time(&item.ctime),
            inode: item.ino,
            size: item.file_size,
        }
    }

    /// Whether any change at or after `moment` would give another stat.
    pub(super) fn is_before(self, moment: SystemTime) -> bool {
        let Ok(moment) = moment.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let time = |(seconds, fraction): (u32, u32)| Duration::new(seconds.into(), fraction);
        let coarse = self.modified.1 == 0 && self.changed.1 == 0;
        let tick = if coarse { COARSE_TICK } else { TICK };
        time(self.modified).max(time(self.changed)) + tick < moment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_vouches_only_for_what_is_older_than_a_tick() {
        let stat = |modified, changed| Stat {
            modified,
            changed,
            inode: 1,
            size: 1,
        };
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let ms = |millis: u32| (millis / 1000, millis % 1000 * 1_000_000);
        for (modified, changed, looked_at, trusted) in [
            (ms(5_001), ms(5_001), 5_050, true),
            (ms(5_001), ms(5_001), 5_015, false),
            (ms(5_001), ms(5_001), 5_001, false),
            // Somebody set the modification time back; the change time cannot be set.
            (ms(1_001), ms(5_001), 5_010, false),
            (ms(9_001), ms(5_001), 5_050, false),
            // Whole seconds: possibly a file system without fractions.
            (ms(5_000), ms(5_000), 6_999, false),
            (ms(5_000), ms(5_000), 7_001, true),
        ] {
            let stat = stat(modified, changed);
            assert_eq!(stat.is_before(at(looked_at)), trusted, "{stat:?} looked at {looked_at}");
        }
    }
}
