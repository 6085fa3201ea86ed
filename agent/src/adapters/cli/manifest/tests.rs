//! Valid manifests, and the messages for wrong ones.

use super::*;

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, Path::new("/etc/x.toml"))
}

#[test]
fn the_smallest_manifest_reads_its_prompt_from_standard_input() {
    let manifest = parse("name = 'x'\ncommand = 'x'").unwrap();
    assert_eq!(manifest.prompt.pass, Pass::Stdin);
    assert_eq!(manifest.parser.0.name, "text");
}

#[test]
fn what_is_wrong_is_said_with_the_path() {
    let cases = [
        ("name = 'x'", "missing field `command`"),
        ("name = 'X y'\ncommand = 'x'", "is not an adapter name"),
        (
            "name = 'x'\ncommand = 'x'\nparser = 'claude'",
            "there are text, aider-text, claude-stream-json",
        ),
        ("name = 'x'\ncommand = 'x'\ncolour = 'red'", "unknown field `colour`"),
        (
            "name = 'x'\ncommand = 'x'\n[env]\ninherits = ['A']",
            "unknown field `inherits`",
        ),
        (
            "name = 'x'\ncommand = 'x'\nargs = ['{promt}']",
            "{promt} is not a placeholder",
        ),
        ("name = 'x'\ncommand = 'x'\n[prompt]\npass = 'arg'", "needs {prompt}"),
        (
            "name = 'x'\ncommand = 'x'\nargs = ['{prompt}']\n[prompt]\npass = 'arg'\nlong = 'arg'",
            "do not fit an argument",
        ),
        ("name = 'x'\ncommand = 'x'\n[base]\npass = 'file'", "needs {base_file}"),
        (
            "name = 'x'\ncommand = 'x'\n[[failure]]\nkind = 'auth'",
            "neither exit_code nor pattern",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[[failure]]\npattern = '('\nkind = 'auth'",
            "regex parse error",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[[failure]]\nexit_code = 1\nkind = 'sad'",
            "\"sad\" is not a kind of failure; use ",
        ),
        ("name = 'x'\ncommand = 'x'\n[watchdog]\nidle_seconds = 0", "0 seconds"),
        (
            "name = 'x'\ncommand = 'x'\nresume = 'position'",
            "`resume` needs [session]",
        ),
        ("name = 'x'\ncommand = ' '", "`command` is empty"),
        (
            "name = 'x'\ncommand = 'x'\n[network]\nhosts = ['https://a.example']",
            "write its host alone",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[[file]]\npath = '/etc/x'\ncontent = ''",
            "is not below {home} or {scratch}",
        ),
        (
            "name = 'x'\ncommand = 'x'\nargs = ['{env:PROXY}']",
            "needs \"PROXY\" in [env] inherit",
        ),
        (
            "name = 'x'\ncommand = 'x'\nargs = ['{env:KEY}']\n[env]\nsecret = ['KEY']",
            "{env:KEY} is secret",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[[failure]]\nexit_code = 1\nwhile_running = '1s'\nkind = 'auth'",
            "needs a pattern",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[session]\nfolder = 'HOME'\nfile = '{conversation}'",
            "needs `find` and `id`",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[session]\nfolder = 'HOME'\nfile = 'x'\nfind = '{conversation}'",
            "needs `id`",
        ),
        (
            "name = 'x'\ncommand = 'x'\n[session]\nfolder = 'HOME'\nfile = 'x'\nfind = '*'\nid = '/id'",
            "need {conversation}",
        ),
    ];
    for (text, problem) in cases {
        let error = parse(text).unwrap_err();
        let chain = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
        );
        assert!(
            chain.contains("/etc/x.toml") && chain.contains(problem),
            "{text}\n{chain}"
        );
    }
}

#[test]
fn groups_without_values_are_left_out_and_values_are_not_looked_into() {
    let manifest = parse(
        "name = 'x'\ncommand = 'x'\nargs = ['a', ['--model', '{model}'], ['--', '{prompt}'], '{base}', '${x} {} {\"j\": 1}']",
    )
    .unwrap();
    let values = BTreeMap::from([("prompt", "say {model} to {base}".to_owned())]);
    assert_eq!(
        manifest.arguments(&values),
        ["a", "--", "say {model} to {base}", "", "${x} {} {\"j\": 1}"]
    );
    let values = BTreeMap::from([("model", "m".to_owned())]);
    assert_eq!(manifest.arguments(&values)[1..3], ["--model", "m"]);
}

#[test]
fn versions_are_found_and_compared_as_numbers() {
    let find = |text| Version::find(text).map(|version| version.to_string());
    assert_eq!(find("2.1.330 (Claude Code)").as_deref(), Some("2.1.330"));
    assert_eq!(find("aider v0.86.2\n").as_deref(), Some("0.86.2"));
    assert_eq!(find("no digits"), None);
    assert!(Version::find("2.1.9") < Version::find("2.1.10"));
}

#[test]
fn folders_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b", "a"] {
        let text = format!("name = '{name}'\ncommand = 'x'");
        std::fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
    }
    std::fs::write(folder.path().join("notes.txt"), "not a manifest").unwrap();
    let found = read_folder(folder.path()).unwrap();
    assert_eq!(found.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(read_folder(&folder.path().join("absent")).unwrap().is_empty());
}

#[test]
fn what_a_program_has_to_reach_is_its_provider_or_the_one_that_is_set_instead() {
    let text = "name = 'x'\ncommand = 'x'\n[network]\nhosts = ['api.example.com']\nfrom = ['X_BASE_URL', 'OTHER']";
    let rule = parse(text).unwrap().network;
    let provider = |url: &str| {
        let agent = AgentEnvironment::from_iter([("X_BASE_URL", url)]);
        let rules = rule.provider(&agent);
        rules.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(provider(""), ["api.example.com"]);
    assert_eq!(provider("https://llm.corp/v1"), ["api.example.com", "llm.corp:443"]);
    assert_eq!(provider("http://127.0.0.1:8080"), ["api.example.com", "127.0.0.1:8080"]);
    assert_eq!(provider("http://[::1]:8080/"), ["api.example.com", "[::1]:8080"]);
    assert_eq!(provider("no address"), ["api.example.com"]);
}
