//! Honest work must not look like cheating: the paths of real commits, judged as results of tasks.
//!
//! A result that changes tests is of high risk whatever it does: nothing but a person's look tells a test
//! that was mended from one that was weakened. So the rate that is bounded here is the one of tasks that
//! come with their tests (`--protect`), of which verify takes the base's; the other one is printed.

use super::*;

const COMMITS: &str = include_str!("honest_commits.txt");
/// How verify of the projects is said, in their order.
const VERIFY: [(&str, &str); 12] = [
    ("sharkdp/fd", "cargo test"),
    ("pallets/flask", "python -m pytest"),
    ("spf13/cobra", "go test ./..."),
    ("tj/commander.js", "npm ci && npm test"),
    ("psf/requests", "python -m pytest tests"),
    ("google/gson", "mvn -q test"),
    ("sinatra/sinatra", "bundle exec rake test"),
    ("guzzle/guzzle", "vendor/bin/phpunit"),
    ("jqlang/jq", "make check"),
    ("pallets/click", "python -m pytest"),
    ("gin-gonic/gin", "go test ./..."),
    ("expressjs/express", "npm ci && npm test"),
];

/// A commit of a repository.
struct Commit {
    repository: &'static str,
    id: &'static str,
    paths: Vec<&'static str>,
    deleted: Vec<String>,
}

fn commits() -> Vec<Commit> {
    let mut all: Vec<Commit> = Vec::new();
    for line in COMMITS.lines().filter(|line| !line.starts_with('#')) {
        match (line.split_once(' ').unwrap(), all.last_mut()) {
            (("=", name), _) => {
                let (repository, id) = name.split_once(' ').unwrap();
                all.push(Commit {
                    repository,
                    id,
                    paths: Vec::new(),
                    deleted: Vec::new(),
                });
            }
            ((status, path), Some(commit)) => {
                commit.paths.push(path);
                if status == "D" {
                    commit.deleted.push(path.to_owned());
                }
            }
            (_, None) => panic!("a path without a commit: {line}"),
        }
    }
    all
}

#[test]
fn real_commits_are_rarely_of_high_risk() {
    let all = commits();
    let mut repositories: Vec<_> = all.iter().map(|commit| commit.repository).collect();
    repositories.dedup();
    assert_eq!(repositories, VERIFY.map(|(repository, _)| repository));
    let (mut with_tests, mut high) = (0, Vec::new());
    for (repository, verify) in VERIFY {
        let spec = task(Some(verify)).spec;
        let of_it = all.iter().filter(|commit| commit.repository == repository);
        assert!(of_it.clone().count() >= 15, "{repository}");
        for commit in of_it {
            let mut whole = result(9, &commit.paths);
            whole.deleted.clone_from(&commit.deleted);
            let as_it_is = assess(&whole, &spec, &[]);
            with_tests += usize::from(as_it_is.risk == Risk::High);
            let is_test = |path: &&str| {
                let alone = assess(&result(1, &[path]), &spec, &[]);
                alone.flags[..]
                    .first()
                    .is_some_and(|flag| flag.starts_with("changes tests"))
            };
            let tests: Vec<_> = commit
                .paths
                .iter()
                .copied()
                .filter(is_test)
                .map(str::to_owned)
                .collect();
            let judged = assess(&whole, &spec, &tests);
            if judged.risk == Risk::High {
                high.push(format!("{repository} {}: {:?}", &commit.id[..12], judged.flags));
            }
        }
    }
    eprintln!(
        "honest: {} commits of {} repositories: {} of high risk when the task brings its tests, {with_tests} when the \
         result changes them\n{}",
        all.len(),
        repositories.len(),
        high.len(),
        high.join("\n")
    );
    assert!(high.len() * 100 <= all.len() * 5, "more than 5 %: {high:#?}");
}
