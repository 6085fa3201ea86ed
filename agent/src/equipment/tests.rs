//! Shells that are handed to an agent, with an adapter that needs a key.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::*;
use crate::process::Runner;

/// The place of an agent, with the manifests of a person.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("adapters")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn adapter(&self, name: &str, more: &str) {
        let text = format!("name = \"{name}\"\ncommand = \"sh\"\nargs = [\"-c\", \"true\"]\n{more}");
        fs::write(self.path(&format!("adapters/{name}.toml")), text).unwrap();
    }

    /// A start of the agent, in a shell without a key.
    async fn start(&self) -> Equipments {
        let environment = AgentEnvironment::from_iter([("PATH", "/usr/bin:/bin"), ("TZ", "UTC")]);
        let manifests = self.path("adapters");
        let make: MakeAdapterConfig = Arc::new(move |environment| {
            let mut config = AdapterConfig::new(environment, Runner::default());
            config.manifest_dirs = vec![manifests.clone()];
            Ok(config)
        });
        let record = ProgramRecord {
            record: self.path("programs"),
            kept_out: Vec::new(),
        };
        let start = Equipment {
            adapters: adapters::load(make(environment.clone()).unwrap()).await.unwrap(),
            programs: Programs::survey(environment.path(), &[]),
            environment,
            fingerprint: None,
        };
        let shells = Handed::shells_within(self.dir.path());
        let equipments = Equipments::new(start, Some(make), shells, record, Blocking::Threads);
        equipments.note_start().await;
        // Nobody has to be told here.
        equipments.reached(u64::MAX);
        equipments
    }
}

fn shell(more: &[(&str, &str)]) -> Values {
    let all = [("PATH", "/usr/bin:/bin"), ("TZ", "UTC")].iter().chain(more);
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Whether an adapter can be used; `None`: there is none.
fn usable(adapters: &[AdapterInfo], name: &str) -> Option<bool> {
    let found = adapters.iter().find(|adapter| adapter.name.as_str() == name)?;
    Some(found.unavailable.is_none())
}

fn known(equipments: &Equipments) -> Vec<AdapterInfo> {
    equipments.announced().borrow().adapters.clone()
}

#[tokio::test]
async fn a_task_works_with_its_shell_and_others_with_the_start() {
    let place = Place::new();
    place.adapter("keyed", "[env]\nrequire = [\"MY_KEY\"]\n");
    let equipments = place.start().await;
    let (name, task, other) = (Digest::of(b"1"), TaskId::from_random(1), TaskId::from_random(2));
    assert_eq!(usable(&known(&equipments), "keyed"), Some(false));

    let taken = equipments
        .take(name.clone(), shell(&[("MY_KEY", "secret")]))
        .await
        .unwrap();
    assert_eq!(taken.differs, ["MY_KEY"]);
    assert_eq!(usable(&taken.adapters, "keyed"), Some(true));
    assert_eq!(usable(&known(&equipments), "keyed"), Some(true));
    let key = |of: &Equipment| of.environment.get("MY_KEY").map(OsStr::to_owned);
    let own = equipments.of_task(Some(&name), task).await.unwrap();
    assert_eq!(key(&own), Some("secret".into()));
    for (name, task) in [(None, other), (Some(Digest::of(b"2")), other)] {
        let none = equipments.of_task(name.as_ref(), task).await.unwrap();
        assert_eq!(key(&none), None);
    }

    // Another start finds it in its file, until the task is over.
    let again = place.start().await;
    again.restore().await;
    assert_eq!(usable(&known(&again), "keyed"), Some(true));
    assert_eq!(
        key(&again.of_task(Some(&name), task).await.unwrap()),
        Some("secret".into())
    );
    Handed::shells_within(place.dir.path()).forget(task);
    let same = again.take(Digest::of(b"3"), shell(&[])).await.unwrap();
    assert_eq!((same.differs.len(), usable(&known(&again), "keyed")), (0, Some(false)));
    assert!(!Path::exists(
        &place.path("shells").join(format!("{}.new", Digest::of(b"3")))
    ));
}

#[tokio::test]
async fn adapters_are_made_anew_when_something_changed_and_only_then() {
    let place = Place::new();
    let equipments = place.start().await;
    let same = async || {
        let before = equipments.start();
        let taken = equipments.take(Digest::of(b"1"), shell(&[])).await;
        (taken, Arc::ptr_eq(&before, &equipments.start()))
    };
    let (taken, kept) = same().await;
    assert!(kept && usable(&taken.unwrap().adapters, "late").is_none());
    place.adapter("late", "");
    let (taken, kept) = same().await;
    assert!(!kept && usable(&taken.unwrap().adapters, "late") == Some(true));
    assert_eq!(usable(&known(&equipments), "late"), Some(true));
    assert!(same().await.1);

    place.adapter("late", "wrong = 1\n");
    let refused = same().await.0.unwrap_err();
    assert!(refused.contains("late.toml") || refused.contains("wrong"), "{refused}");
    assert_eq!(usable(&known(&equipments), "late"), Some(true), "what was there stays");
}
