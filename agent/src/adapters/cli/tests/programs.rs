//! Which program runs, and why a program is refused.

use super::*;

#[tokio::test]
async fn a_program_that_cannot_be_used_says_why() {
    let place = Place::new();
    place.program("old", "echo 1.9.12 '(Old)'");
    place.program("broken", "exit 3");
    place.program("new", "echo v1.10.0");
    let version = "\n[version]\nargs = ['--version']\nmin = '1.10'";
    let cases = [
        ("command = 'nowhere'".to_owned(), Some("is not installed"), ""),
        (
            format!("command = 'old'{version}"),
            Some("1.10 is the oldest that works"),
            "",
        ),
        (
            format!("command = 'broken'{version}"),
            Some("it ended with exit code 3"),
            "",
        ),
        (format!("command = 'new'{version}"), None, "v1.10.0"),
        (
            "command = 'new'\n[env]\nrequire = ['A_KEY', 'B_KEY']".to_owned(),
            Some("set A_KEY or B_KEY"),
            "",
        ),
        (
            "command = 'new'\n[env]\nrequire = ['A_KEY', 'MY_KEY']".to_owned(),
            None,
            "",
        ),
        ("command = '{manifest_dir}/bin/new'".to_owned(), None, ""),
    ];
    for (text, problem, version) in cases {
        let info = place.adapter(&format!("name = 'x'\n{text}")).await.info();
        match (problem, info.unavailable) {
            (Some(problem), Some(said)) => assert!(said.contains(problem), "{text}: {said}"),
            (None, None) => assert_eq!(info.version, version),
            (expected, said) => panic!("{text}: expected {expected:?}, got {said:?}"),
        }
    }
    let adapter = place.adapter("name = 'x'\ncommand = 'nowhere'").await;
    let told = run(Arc::new(adapter), place.input("", ""), CancellationToken::new()).await;
    assert_eq!(kind(&told.end), Some(FailureKind::AdapterUnavailable));
}

#[tokio::test]
async fn secrets_are_named_for_masking() {
    let place = Place::new();
    let adapter = place
        .adapter("name = 'x'\ncommand = 'sh'\n[env]\nsecret = ['MY_KEY', 'ABSENT']")
        .await;
    assert_eq!(Secret::values(&adapter.secrets()), ["key-123456"]);
}

#[tokio::test]
async fn two_adapters_cannot_have_one_name() {
    let place = Place::new();
    let mut config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    config.manifest_dirs = vec![place.path("tree")];
    fs::write(place.path("tree/a.toml"), "name = 'mine'\ncommand = 'sh'").unwrap();
    assert!(
        crate::adapters::load(config.clone())
            .await
            .unwrap()
            .contains_key(&"mine".parse().unwrap())
    );
    config.settings = toml::from_str("[box]\nkind = 'openai-chat'\nbase_url = 'http://gpu/v1'").unwrap();
    for name in ["mine", "box"] {
        fs::write(place.path("tree/b.toml"), format!("name = '{name}'\ncommand = 'sh'")).unwrap();
        let error = crate::adapters::load(config.clone())
            .await
            .err()
            .map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains(name)), "{name}");
    }
}

#[tokio::test]
async fn a_manifest_of_the_users_replaces_the_one_that_comes_with_the_program() {
    let place = Place::new();
    let mut config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    config.manifest_dirs = vec![place.path("tree")];
    place.program("codex", "if [ \"$1\" = --version ]; then echo 9.9.9; exit; fi");
    fs::write(place.path("tree/codex.toml"), "name = 'codex'\ncommand = 'sh'").unwrap();
    let registry = crate::adapters::load(config).await.unwrap();
    // The user's asks for no version and needs no key.
    let info = registry[&"codex".parse::<kage_core::id::AdapterName>().unwrap()].info();
    assert_eq!((info.version.as_str(), info.unavailable), ("", None));
    assert!(registry.contains_key(&"gemini".parse::<kage_core::id::AdapterName>().unwrap()));
}

#[tokio::test]
async fn a_manifest_of_the_users_replaces_a_built_in_adapter_for_an_api() {
    let place = Place::new();
    let mut config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    config.manifest_dirs = vec![place.path("tree")];
    for name in ["claude-api", "openai", "openai-chat", "ollama", "gemini-api"] {
        fs::write(
            place.path(&format!("tree/{name}.toml")),
            format!("name = '{name}'\ncommand = 'sh'"),
        )
        .unwrap();
    }
    let registry = crate::adapters::load(config).await.unwrap();
    for name in ["openai", "ollama"] {
        let info = registry[&name.parse::<kage_core::id::AdapterName>().unwrap()].info();
        // The built-in ones have no key and no program here.
        assert_eq!(info.unavailable, None, "{name}");
    }
}

#[tokio::test]
async fn a_program_that_was_changed_since_is_not_run_and_one_in_the_way_is_not_either() {
    let place = Place::new();
    fs::create_dir(place.path("first")).unwrap();
    let mut env = place.env.clone();
    let path = format!(
        "{}:{}",
        place.path("first").display(),
        env[OsStr::new("PATH")].display()
    );
    env.insert("PATH".into(), path.into());
    place.program("x", "echo honest");
    let manifest = Manifest::parse("name = 'x'\ncommand = 'x'\n", &place.path("x.toml")).unwrap();
    let adapter = Arc::new(
        CliAdapter::new(
            manifest,
            &AdapterConfig::new(AgentEnvironment::new(env), Runner::default()),
            &crate::adapters::logins().unwrap(),
        )
        .await,
    );

    // An earlier session puts one into a folder that comes first.
    fs::write(place.path("first/x"), "#!/bin/sh\necho forged\n").unwrap();
    fs::set_permissions(place.path("first/x"), fs::Permissions::from_mode(0o755)).unwrap();
    let told = run(adapter.clone(), place.input("", "own"), CancellationToken::new()).await;
    assert_eq!(told.stdout, "honest\n");

    // It replaces the program itself.
    fs::remove_file(place.path("bin/x")).unwrap();
    place.program("x", "echo forged");
    let told = run(adapter, place.input("", "own"), CancellationToken::new()).await;
    let AdapterEnd::Failed(failure) = told.end else {
        panic!("{:?}", told.end);
    };
    assert_eq!(failure.kind, FailureKind::AdapterUnavailable);
    let program = place.path("bin/x").display().to_string();
    assert!(
        failure.message.contains(&program) && failure.message.contains("restart the agent"),
        "{failure}"
    );
    assert_eq!(told.stdout, "");
}

#[tokio::test]
async fn a_program_where_sessions_write_is_not_taken() {
    let place = Place::new();
    place.program("x", "echo forged");
    let mut config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    config.kept_out.push(place.path("bin"));
    let by_name = Manifest::parse("name = 'x'\ncommand = 'x'\n", &place.path("x.toml")).unwrap();
    let adapter = CliAdapter::new(by_name, &config, &crate::adapters::logins().unwrap()).await;
    let unavailable = adapter.info().unavailable.unwrap();
    assert!(unavailable.contains("not installed"), "{unavailable}");
    let by_path = Manifest::parse("name = 'x'\ncommand = '{manifest_dir}/bin/x'\n", &place.path("x.toml")).unwrap();
    let adapter = CliAdapter::new(by_path, &config, &crate::adapters::logins().unwrap()).await;
    let unavailable = adapter.info().unavailable.unwrap();
    assert!(unavailable.contains("where sessions write"), "{unavailable}");
}
