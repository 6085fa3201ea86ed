//! A run that is started in a folder of a monorepo.

use kage_tests::command::Person;
use kage_tests::repo::Repo;

/// Appends to a file where it starts.
const WORK: &str = "cat >/dev/null; echo more >> w.txt";

#[tokio::test]
async fn a_run_works_and_checks_where_it_was_started() {
    let person = Person::new();
    person.adapter("worker", WORK);
    person.adapter("remover", "cat >/dev/null; cd ..; rm -r web; ln -s / web");
    let repo = Repo::empty(&person.path("repo"));
    repo.write("packages/web/package.json", "{}");
    repo.write("packages/web/w.txt", "w\n");
    repo.write("packages/web/src/a.js", "a\n");
    repo.write("kage.toml", "[run]\nverify = \"test -d packages/web\"\n");
    repo.commit("a monorepo");
    let web = repo.path().join("packages/web");
    let run = ["run", "add a line to w.txt", "--with", "worker"];

    // A flag's command runs where it was typed.
    let ran = person
        .kage(&web, &[&run[..], &["--verify", "grep more w.txt"]].concat())
        .await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.err.contains("working in packages/web"), "{ran:#?}");
    let applied = person.kage(&web, &["apply"]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert_eq!(std::fs::read_to_string(web.join("w.txt")).unwrap(), "w\nmore\n");
    repo.git(&["checkout", "--quiet", "--", "."]);

    // The command of a file runs where that file is.
    let ran = person.kage(&web, &run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        ran.err.contains("kage.toml says: verify `test -d packages/web`"),
        "{ran:#?}"
    );
    assert!(ran.out.contains("verified"), "{ran:#?}");

    // The nearest file counts; its paths count from its folder.
    repo.write(
        "packages/web/kage.toml",
        "[run]\nverify = \"test -f package.json && ! grep more w.txt && grep more src/w.txt\"\nprotect = [\"/w.txt\"]\n",
    );
    let src = web.join("src");
    let ran = person.kage(&src, &run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    let said = "packages/web/kage.toml says: verify `test -f package.json && ! grep more w.txt && grep more src/w.txt`, \
                protect /w.txt";
    assert!(ran.err.contains(said), "{ran:#?}");

    // All of it at the top.
    let at_top = [&run[..], &["--root", "--verify", "grep more w.txt && test -d packages"]].concat();
    let ran = person.kage(&web, &at_top).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        !ran.err.contains("working in") && ran.out.contains("verified"),
        "{ran:#?}"
    );

    // A session cannot move the check elsewhere; protected files would bring the folder back.
    std::fs::remove_file(web.join("kage.toml")).unwrap();
    let ran = person
        .kage(
            &web,
            &[
                "run",
                "remove it",
                "--with",
                "remover",
                "--rework",
                "0",
                "--verify",
                "true",
            ],
        )
        .await;
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.out.contains("packages/web is not a folder any more"), "{ran:#?}");

    // A folder that the base does not have.
    std::fs::create_dir(repo.path().join("empty")).unwrap();
    let ran = person.kage(&repo.path().join("empty"), &run).await;
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(
        ran.err.contains("nothing in empty is part of what sessions get"),
        "{ran:#?}"
    );
}
