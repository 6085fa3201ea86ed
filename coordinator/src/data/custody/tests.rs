use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const STORE: StoreId = StoreId::from_random(1);
const OTHER: StoreId = StoreId::from_random(2);
const OPENED: Opened = Opened {
    id: STORE,
    times: 1,
    position: 1,
};

fn folder() -> Folder {
    Folder {
        path: PathBuf::from("/data"),
        mark: None,
        left_open: None,
        log: false,
        acknowledged: None,
        holdings: Holdings::default(),
    }
}

fn output(n: u128) -> Holdings {
    Holdings {
        attempts: (0..n).map(AttemptId::from_random).collect(),
        ..Holdings::default()
    }
}

fn marked(id: StoreId, opened: u64) -> Folder {
    Folder {
        mark: Some(Mark {
            id,
            opened,
            adopted: false,
            unswept_until: None,
        }),
        holdings: output(3),
        ..folder()
    }
}

fn database(id: Option<StoreId>, opened: u64) -> Known {
    Known {
        id,
        opened,
        position: opened * 10,
        unused: false,
        unknown: 0,
    }
}

const ADOPT: Consent = Consent {
    adopt: true,
    older: false,
};

const OLDER: Consent = Consent {
    adopt: false,
    older: true,
};

/// The decision without a person's word; with it, every start succeeds.
fn decided(folder: &Folder, found: &Found) -> Result<Beginning, String> {
    assert!(judge(folder, found, ADOPT).is_ok(), "{folder:?} {found:?}");
    judge(folder, found, Consent::default()).map_err(|misfit| misfit.to_string())
}

#[test]
fn a_folder_without_a_database_is_new_or_has_lost_it() {
    let nothing = [Absent::Missing, Absent::Empty, Absent::Blank];
    for absent in nothing {
        let found = Found::Nothing(absent);
        assert_eq!(decided(&folder(), &found), Ok(Beginning::First), "{absent:?}");
        let blobs = Holdings {
            blobs: true,
            ..Holdings::default()
        };
        let repositories = Holdings {
            repositories: true,
            ..Holdings::default()
        };
        let lost = [
            marked(STORE, 1),
            Folder {
                holdings: Holdings::default(),
                ..marked(STORE, 1)
            },
            Folder {
                holdings: output(1),
                ..folder()
            },
            Folder {
                holdings: blobs,
                ..folder()
            },
            Folder {
                holdings: repositories,
                ..folder()
            },
            Folder { log: true, ..folder() },
        ];
        for folder in lost {
            let words = decided(&folder, &found).unwrap_err();
            assert!(
                words.starts_with("/data has ") && words.contains("kage.db-wal") && words.contains("--adopt-data"),
                "{words}"
            );
        }
    }
    let words = decided(&marked(STORE, 1), &Found::Nothing(Absent::Missing)).unwrap_err();
    assert!(
        words.starts_with(
            "/data has the output of 3 attempts, and its database kage.db is missing; nothing was changed"
        ),
        "{words}"
    );
}

#[test]
fn a_database_belongs_to_the_folder_with_its_id() {
    let usual = Found::Database(database(Some(STORE), 4));
    assert_eq!(decided(&marked(STORE, 4), &usual), Ok(Beginning::Usual));
    // A start that was interrupted before it wrote the folder's record.
    assert_eq!(decided(&marked(STORE, 3), &usual), Ok(Beginning::Usual));
    for other in [Some(OTHER), None] {
        let words = decided(&marked(STORE, 4), &Found::Database(database(other, 4))).unwrap_err();
        assert!(words.contains(&format!("/data belongs to store {STORE}")), "{words}");
    }
}

#[test]
fn a_database_that_ends_before_what_was_acknowledged_is_refused() {
    let noted = |position| Folder {
        acknowledged: Some(position),
        ..marked(STORE, 4)
    };
    let found = |opened, position| {
        Found::Database(Known {
            position,
            ..database(Some(STORE), opened)
        })
    };
    for (folder, found, words) in [
        (noted(41), found(4, 40), "it ends at commit 40, and commit 41 was"),
        // As an older copy by both, or one of a version that did not count.
        (noted(41), found(3, 30), "it ends at commit 30, and commit 41 was"),
        (noted(41), found(4, 0), "it ends at commit 0, and commit 41 was"),
        (marked(STORE, 4), found(2, 40), "it ends at start 2, and start 4 was"),
        (noted(20), found(2, 20), "it ends at start 2, and start 4 was"),
    ] {
        let refused = decided(&folder, &found).unwrap_err();
        assert!(
            refused.contains(words) && refused.contains("--accept-older"),
            "{refused}"
        );
        assert_eq!(judge(&folder, &found, OLDER), Ok(Beginning::Older));
    }
    // The note may be late after a power cut, and is not there yet after an update.
    for folder in [noted(40), noted(39), marked(STORE, 4)] {
        assert_eq!(decided(&folder, &found(4, 40)), Ok(Beginning::Usual));
    }
    // That word is for nothing else.
    let other = Found::Database(database(Some(OTHER), 4));
    assert!(judge(&marked(STORE, 4), &other, OLDER).is_err());
    let nothing = Found::Nothing(Absent::Missing);
    assert!(judge(&marked(STORE, 4), &nothing, OLDER).is_err());
}

#[test]
fn what_a_version_without_ids_left_is_taken_once() {
    let before = Found::Database(database(None, 0));
    let old = Folder {
        holdings: output(2),
        ..folder()
    };
    assert_eq!(decided(&old, &before), Ok(Beginning::Adopted));
    assert_eq!(decided(&folder(), &before), Ok(Beginning::Adopted));
    // A first start that was interrupted between database and folder.
    let cut_off = Found::Database(Known {
        unused: true,
        ..database(Some(STORE), 1)
    });
    assert_eq!(decided(&folder(), &cut_off), Ok(Beginning::Adopted));
}

#[test]
fn a_database_that_was_never_used_has_made_no_results() {
    let unused = Found::Database(Known {
        unused: true,
        unknown: 3,
        ..database(Some(STORE), 1)
    });
    let with_results = Folder {
        holdings: Holdings {
            results: true,
            repositories: true,
            ..Holdings::default()
        },
        ..folder()
    };
    for folder in [marked(STORE, 1), with_results] {
        let words = decided(&folder, &unused).unwrap_err();
        assert!(words.contains("has never been used"), "{words}");
    }
    // A person said once that it is the right one.
    let opened = OPENED;
    let adopted = Mark::next(opened, None, Beginning::Adopted, NOW);
    let adopted = Mark::next(opened, Some(adopted), Beginning::Usual, NOW);
    let taken = Folder {
        mark: Some(adopted),
        ..marked(STORE, 1)
    };
    assert_eq!(decided(&taken, &unused), Ok(Beginning::Usual));
    // Pushed before the first task was created.
    let pushed = Folder {
        holdings: Holdings {
            repositories: true,
            blobs: true,
            ..Holdings::default()
        },
        ..marked(STORE, 1)
    };
    assert_eq!(decided(&pushed, &unused), Ok(Beginning::Usual));
}

#[test]
fn what_the_database_does_not_know_stays_a_week_however_often_it_is_opened() {
    let day = Duration::from_secs(24 * 60 * 60);
    let opened = OPENED;
    let after = |days: u64| Timestamp::from_millis(NOW.as_millis() + days * 24 * 60 * 60 * 1000);
    for beginning in [Beginning::First, Beginning::Adopted, Beginning::Older] {
        let mut mark = Mark::next(opened, None, beginning, NOW);
        assert_eq!(mark.unswept_for(NOW), 7 * day, "{beginning:?}");
        for (days, left) in [(1, 6), (6, 1), (7, 0), (8, 0)] {
            // As the next start finds it.
            let found = Mark::parse(&mark.to_string()).unwrap();
            assert_eq!(found, mark);
            mark = Mark::next(opened, Some(found), Beginning::Usual, after(days));
            assert_eq!(mark.unswept_for(after(days)), left * day, "{beginning:?}, day {days}");
        }
        // An older database begins another week, and a clock that was put back makes no longer one.
        mark = Mark::next(opened, Some(mark), Beginning::Older, after(8));
        assert_eq!(mark.unswept_for(after(9)), 6 * day);
        assert_eq!(mark.unswept_for(NOW), 7 * day);
    }
    let usual = Mark::next(opened, None, Beginning::Usual, NOW);
    assert_eq!(usual.unswept_for(NOW), Duration::ZERO);
    assert!(Mark::parse(&format!("{STORE} 1 unswept-until=soon")).is_none());
}

#[test]
fn a_log_is_missing_only_when_what_was_in_it_is() {
    let broken_off = Folder {
        left_open: Some(4),
        ..marked(STORE, 4)
    };
    let knows_less = Found::Database(Known {
        unknown: 1,
        ..database(Some(STORE), 4)
    });
    let words = decided(&broken_off, &knows_less).unwrap_err();
    assert!(
        words.contains("kage.db-wal of the run that was broken off is missing"),
        "{words}"
    );
    let with_log = Folder {
        log: true,
        ..broken_off.clone()
    };
    assert_eq!(decided(&with_log, &knows_less), Ok(Beginning::Usual));
    // Another program wrote the log into the file.
    let knows_all = Found::Database(database(Some(STORE), 4));
    assert_eq!(decided(&broken_off, &knows_all), Ok(Beginning::Usual));
    // A backup from an earlier run was put back.
    let backup = Found::Database(Known {
        unknown: 1,
        ..database(Some(STORE), 3)
    });
    assert!(decided(&broken_off, &backup).unwrap_err().contains("--accept-older"));
    assert_eq!(judge(&broken_off, &backup, OLDER), Ok(Beginning::Older));
}

#[test]
fn a_folder_is_looked_at_without_being_changed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let look = || Folder::look(root, false).unwrap();
    assert_eq!(
        look(),
        Folder {
            path: root.to_owned(),
            ..folder()
        }
    );
    std::fs::create_dir_all(root.join("repos/default/repo.git/refs/kage/bases")).unwrap();
    std::fs::create_dir_all(root.join("blobs/default/ab")).unwrap();
    let attempt = AttemptId::from_random(7);
    std::fs::create_dir_all(root.join("output").join(attempt.to_string())).unwrap();
    std::fs::write(root.join("kage.db-wal"), "").unwrap();
    let found = look();
    assert_eq!(
        found.holdings,
        Holdings {
            attempts: vec![attempt],
            results: false,
            repositories: true,
            blobs: true,
        }
    );
    assert!(!found.log);
    std::fs::write(
        root.join("repos/default/repo.git/packed-refs"),
        "0 refs/kage/results/1\n",
    )
    .unwrap();
    std::fs::write(root.join("kage.db-wal"), "something").unwrap();
    let mark = Mark {
        id: STORE,
        opened: 5,
        adopted: true,
        unswept_until: Some(NOW),
    };
    std::fs::write(root.join("store-id"), format!("{mark}\n")).unwrap();
    std::fs::write(root.join("kage.db-open"), "5\n").unwrap();
    std::fs::write(root.join("store-position"), "00000000000000000012\n").unwrap();
    let found = look();
    assert_eq!((found.mark, found.left_open, found.log), (Some(mark), Some(5), true));
    assert_eq!(found.acknowledged, Some(12));
    assert!(found.holdings.results);

    std::fs::write(root.join("store-id"), "something else").unwrap();
    let unreadable = Folder::look(root, false).unwrap_err().to_string();
    assert!(
        unreadable.contains("store-id does not hold the id of a store"),
        "{unreadable}"
    );
    assert_eq!(Folder::look(root, true).unwrap().mark, None);
}
