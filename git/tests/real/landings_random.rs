//! Random states of a person's repository and random results, compared with git itself: a
//! cherry-pick of the result, which merges the same three trees, in another repository. If that is
//! clean and no uncommitted work is in the way, exactly its tree is landed, in commits of HEAD and
//! ours only, and what was staged stays staged. Otherwise nothing changes, and the paths are named.
//! What git itself would land in the person's folder is refused only where that would lose something, and
//! seldom: where it would write a file again that the person removed, and where it would write over a file
//! that it is told to ignore or, with a sparse checkout, over a new one. The repository has any shape that
//! people's have.

use kage_git::UserRepo;
use kage_git::landing::{
    LandingError, LandingMessage, MergeEnd, Merged, Obstacle, Strategy as Landing, plan_apply, plan_merge,
};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::sandbox::{fingerprint, message};

mod case;
mod edits;
mod world;

use case::{Case, Shape, Since, case, found_before};
use edits::{MODULE, PATHS};
use world::{Scene, World};

impl World {
    async fn merges(&self, case: &Case) {
        let scene = self.stage(case);
        let judged = self.judged(case.shape, &scene, &scene.head_files);
        let before = (self.prints(), self.disk());
        let repository = UserRepo::discover(&self.person).await.unwrap();
        let message = message();
        let (base, result) = (&scene.base, &scene.result);
        let planned = plan_merge(&repository, &self.mirror, base, result, Landing::Auto, &message).await;
        let ours = self.sandbox.git(&self.person, &["rev-parse", "HEAD^{tree}"]);
        let Some(tree) = judged else {
            assert!(matches!(planned, Err(LandingError::Conflicts { .. })), "{planned:?}");
            assert_eq!(self.prints(), before.0);
            return;
        };
        if tree == ours {
            assert_eq!(planned.unwrap().end(), MergeEnd::AlreadyThere);
            return;
        }
        let (old, new) = (self.files(&ours), self.files(&tree));
        let paths = old.keys().chain(new.keys());
        let touched: Vec<&String> = paths.filter(|path| old.get(*path) != new.get(*path)).collect();
        let is_dirty = |path: &str| scene.head_files.get(path) != scene.disk.get(path);
        // git leaves alone what was staged as it is going to be, whatever the disk has.
        let index = self.index();
        let is_staged = |path: &String| {
            let staged = index.get(path);
            staged.is_some() && staged == new.get(path) && staged != old.get(path)
        };
        let in_the_way: Vec<&&String> = touched
            .iter()
            .filter(|path| is_dirty(path) && before.1.get(**path) != new.get(**path) && !is_staged(path))
            .collect();
        let dirty: Vec<&String> = scene
            .head_files
            .keys()
            .chain(scene.disk.keys())
            .filter(|it| is_dirty(it))
            .collect();
        let beside = |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
        let near = touched
            .iter()
            .any(|path| dirty.iter().any(|other| beside(path, other) || beside(other, path)));
        let staged = || {
            self.sandbox.git(
                &self.person,
                &["diff", "--cached", "--no-renames", "--raw", "--abbrev=40"],
            )
        };
        let staged_before = staged();
        let in_the_index = touched
            .iter()
            .any(|path| staged_before.lines().any(|line| line.ends_with(path.as_str())));
        let plan = match planned {
            Err(LandingError::Dirty { paths, fits_back }) => {
                assert!(near || in_the_index || !in_the_way.is_empty(), "{paths:?}");
                let named: Vec<&str> = paths.iter().map(|it| it.path.as_str()).collect();
                assert!(
                    in_the_way.iter().all(|path| named.contains(&path.as_str())),
                    "{named:?} {in_the_way:?}"
                );
                assert_eq!(self.prints(), before.0);
                // A copy of a working tree that is linked would be the same one.
                let git_would = case.shape != Shape::Linked && self.git_would(&tree);
                // git would write files again that the person removed without telling it, and write over
                // files that it is told to ignore and, with a sparse checkout, over new files.
                let removed = |path: &str| scene.head_files.contains_key(path) && !scene.disk.contains_key(path);
                let ignored = |path: &str| {
                    let of = |it: &usize| PATHS[*it] == path || beside(path, PATHS[*it]) || beside(PATHS[*it], path);
                    !scene.head_files.contains_key(path) && case.ignored.iter().any(of)
                };
                let new = |path: &str| case.shape == Shape::Sparse && !scene.head_files.contains_key(path);
                assert!(
                    named.iter().any(|path| removed(path) || ignored(path) || new(path)) || !git_would,
                    "git lands it: {named:?}"
                );
                self.refused.set(self.refused.get() + u32::from(git_would));
                if fits_back {
                    self.put_aside(&scene, &named, &message).await;
                }
                return;
            }
            other => other.unwrap(),
        };
        assert!(in_the_way.is_empty(), "{in_the_way:?} would be lost");
        if near && plan.paths().len() < touched.len() {
            return;
        }
        let executed = plan.execute().await;
        if near && executed.is_err() {
            return;
        }
        let Merged::Committed(commit) = executed.unwrap() else {
            panic!("it is clean");
        };
        assert_eq!(self.sandbox.git(&self.person, &["rev-parse", "HEAD^{tree}"]), tree);
        let log = |args: &[&str]| self.sandbox.git(&self.person, &[&["rev-list"], args].concat());
        let ours: Vec<String> = log(&["HEAD", &format!("^{}", scene.head)])
            .lines()
            .map(str::to_owned)
            .collect();
        let parents = self.sandbox.git(&self.person, &["log", "-1", "--format=%P"]);
        match ours.as_slice() {
            [one] => assert_eq!((one.as_str(), parents.as_str()), (commit.as_str(), scene.head.as_str())),
            [one, change] => {
                assert_eq!(
                    (one.as_str(), parents),
                    (commit.as_str(), format!("{} {change}", scene.head))
                );
                let of_change = self.sandbox.git(&self.person, &["log", "-1", "--format=%P", change]);
                assert_eq!(of_change, scene.base.as_str());
            }
            more => panic!("{more:?}"),
        }
        let left = staged();
        for line in staged_before.lines() {
            let lands = touched.iter().any(|path| line.ends_with(path.as_str()));
            assert!(
                lands || left.lines().any(|it| it == line),
                "{line} is no longer staged: {left}"
            );
        }
        let after = self.disk();
        for path in dirty {
            assert_eq!(after.get(path), before.1.get(path), "{path}");
        }
        for path in touched {
            let is_apart = case.shape == Shape::Sparse && path.starts_with("s/");
            let expected = match is_staged(path) {
                true => before.1.get(path),
                false => new.get(path).filter(|(kind, _)| !is_apart && kind != "160000"),
            };
            assert_eq!(after.get(path), expected, "{path}");
        }
        let objects = self
            .sandbox
            .git(&self.person, &["cat-file", "--batch-all-objects", "--batch-check"]);
        if scene.base != scene.head && !log(&["HEAD"]).contains(scene.base.as_str()) {
            assert!(!objects.contains(scene.result.as_str()));
            let uncommitted = case.since != Since::Committed && !case.amended;
            assert!(!uncommitted || !objects.contains(scene.base.as_str()));
        }
        self.sandbox.git(&self.person, &["fsck", "--strict"]);
    }

    async fn applies(&self, case: &Case) {
        let scene = self.stage(case);
        let unseen = scene.unseen(case);
        let mut seen = scene.disk.clone();
        seen.retain(|path, _| !unseen.contains(path));
        let judged = self.judged(case.shape, &scene, &seen);
        let mut kept = self.disk();
        kept.retain(|path, _| unseen.contains(path));
        let before = self.prints();
        let repository = UserRepo::discover(&self.person).await.unwrap();
        let planned = plan_apply(&repository, &self.mirror, &scene.base, &scene.result).await;
        // Whether git takes the change of a submodule or not.
        if let Err(LandingError::Unsupported { paths }) = &planned {
            assert_eq!(self.prints(), before);
            if judged.is_some() {
                self.by_git(case, &scene, paths);
            }
            return;
        }
        let Some(tree) = judged else {
            let Err(LandingError::Conflicts { conflicts }) = planned else {
                panic!("{planned:?}");
            };
            assert!(!conflicts.is_empty());
            assert_eq!(self.prints(), before);
            return;
        };
        let git_dir = fingerprint(&self.home(case.shape).join(".git"));
        planned.unwrap().execute().await.unwrap();
        let mut expected = self.files(&tree);
        expected.retain(|_, (kind, _)| kind != "160000");
        if case.shape == Shape::Sparse {
            // What is not on the disk and does not change stays so.
            let ours = self.commit(&self.judge, &scene.disk, &[]);
            let ours = self.files(ours.as_str());
            expected.retain(|path, file| !path.starts_with("s/") || ours.get(path) != Some(file));
        }
        expected.extend(kept);
        assert_eq!(self.disk(), expected);
        assert_eq!(fingerprint(&self.home(case.shape).join(".git")), git_dir);
    }

    /// Files alone do not change a submodule, so `apply` leaves a result that does to git: the command
    /// that it names brings it in.
    fn by_git(&self, case: &Case, scene: &Scene, paths: &[Obstacle]) {
        assert!(paths.iter().all(|it| it.path == MODULE), "{paths:?}");
        if scene.disk != scene.head_files || !case.staged.is_empty() {
            return;
        }
        let (base, result) = (scene.base.as_str(), scene.result.as_str());
        let change = self
            .sandbox
            .git(&self.judge, &["diff", "--binary", "--full-index", base, result]);
        let apply = ["apply", "--3way", "--whitespace=nowarn"];
        self.sandbox
            .git_with_input(&self.person, &apply, format!("{change}\n").as_bytes());
    }

    /// Uncommitted work in the way is put aside meanwhile, and goes back on top.
    async fn put_aside(&self, scene: &Scene, named: &[&str], message: &LandingMessage) {
        let literal = ["--literal-pathspecs", "stash", "push", "-q", "--"];
        self.sandbox.git(&self.person, &[&literal[..], named].concat());
        let repository = UserRepo::discover(&self.person).await.unwrap();
        let (base, result) = (&scene.base, &scene.result);
        let plan = plan_merge(&repository, &self.mirror, base, result, Landing::Auto, message).await;
        let merged = plan.unwrap().execute().await.unwrap();
        assert!(matches!(merged, Merged::Committed(_)), "{merged:?}");
        self.sandbox.git(&self.person, &["stash", "pop", "-q"]);
    }
}
#[test]
fn what_lands_is_what_git_makes_of_the_same_three_trees() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let world = runtime.block_on(World::new());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let cases = config.cases;
    // The long tier looks for new cases; everywhere else they are the same ones each time.
    let mut runner = if std::env::var("KAGE_TIER").is_ok_and(|tier| tier == "long") {
        TestRunner::new(config)
    } else {
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    };
    for case in found_before() {
        runtime.block_on(async {
            world.merges(&case).await;
            world.applies(&case).await;
        });
    }
    runner
        .run(&case(), |case| {
            runtime.block_on(async {
                world.merges(&case).await;
                world.applies(&case).await;
            });
            Ok(())
        })
        .unwrap();
    let (refused, most) = (world.refused.get(), (cases / 50).max(2));
    assert!(
        refused <= most,
        "{refused} of {cases} cases are refused, and git lands them"
    );
}
