//! `kage adapter`: what there is on this machine, a manifest of a person's own, and a check of one.

use kage_tests::command::{Person, Said, said};
use kage_tests::programs;
use serde_json::json;

#[tokio::test]
async fn a_person_sees_the_adapters_and_begins_one() {
    let person = Person::new();
    let here = person.path("");
    let kage = async |args: &[&str]| person.kage(&here, args).await;

    let shown = kage(&["adapter", "show", "codex"]).await;
    let codex = include_str!("../../../agent/data/codex.toml");
    assert_eq!((shown.code, shown.out.trim_end()), (0, codex.trim_end()));
    let of_api = kage(&["adapter", "show", "openai"]).await;
    assert!(
        of_api.code != 0 && of_api.err.contains("[adapter.openai]"),
        "{of_api:#?}"
    );
    let nothing = kage(&["adapter", "show", "nothing"]).await;
    assert!(
        nothing.code != 0 && nothing.err.contains("there are aider, "),
        "{nothing:#?}"
    );

    let made = kage(&["adapter", "new", "mine", "--program", "sh", "--format", "json"]).await;
    assert_eq!(made.code, 0, "{made:#?}");
    let file = made.json()["origin"].as_str().unwrap().to_owned();
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        made.json()["manifest"].as_str().unwrap()
    );
    let again = kage(&["adapter", "new", "mine"]).await;
    assert!(again.code != 0 && again.err.contains("is there already"), "{again:#?}");
    let wrong = kage(&["adapter", "new", "Not a name"]).await;
    assert!(
        wrong.code != 0 && wrong.err.contains("is not an adapter name"),
        "{wrong:#?}"
    );

    let listed = kage(&["adapter", "ls", "--format", "json"]).await.json();
    let of = |name: &str| {
        let all = listed["adapters"].as_array().unwrap();
        all.iter().find(|adapter| adapter["name"] == name).unwrap().clone()
    };
    let mine = of("mine");
    let told = json!([mine["program"], mine["origin"], mine["unavailable"]]);
    assert_eq!(told, json!(["sh", file, null]));
    assert_eq!(of("codex")["origin"], "built in");
    assert!(of("openai")["program"].is_null());
    let table = kage(&["adapter", "ls"]).await;
    assert!(
        table.out.contains("mine") && table.out.contains("built in"),
        "{table:#?}"
    );
}

/// Real programs, one whose session goes on and one that offers no such thing, in the check that people run.
#[tokio::test]
async fn a_program_is_checked_against_the_scripted_provider() {
    let Some(program) = programs::real("kimi") else {
        return programs::skip("adapters", "kimi is not installed");
    };
    let person = Person::new();
    let check = async |args: &[&str]| {
        let mut command = person.command(&person.path(""), args);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(program.parent().unwrap().to_owned()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders).unwrap());
        said(command.output().await.unwrap())
    };
    let told = |checked: &Said| {
        let findings = checked.json()["findings"].as_array().unwrap().clone();
        let told = findings.iter().map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap().to_owned();
            (text("step"), text("verdict"))
        });
        told.collect::<Vec<_>>()
    };
    let holds = |steps: &[&str]| {
        steps
            .iter()
            .map(|step| ((*step).to_owned(), "holds".to_owned()))
            .collect::<Vec<_>>()
    };
    let all = ["call", "edit", "tokens", "refused key", "stop", "resume"];

    let kimi = check(&["adapter", "check", "kimi", "--format", "json"]).await;
    assert_eq!((kimi.code, told(&kimi)), (0, holds(&all)), "{kimi:#?}");

    // A program that never calls anybody, and ends with 0.
    person.adapter("idler", "cat >/dev/null");
    let idler = check(&["adapter", "check", "idler", "--format", "json"]).await;
    assert_eq!(told(&idler), [("call".to_owned(), "missing".to_owned())], "{idler:#?}");
    assert_ne!(idler.code, 0);
    assert!(
        idler.out.contains("no call reached the scripted provider"),
        "{idler:#?}"
    );
}
