//! `kage adapter`: what there is on this machine, and a manifest of a person's own.

use kage_tests::command::Person;
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
