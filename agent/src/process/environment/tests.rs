use super::VariableSource as From;
use super::*;

fn agent() -> (tempfile::TempDir, AgentEnvironment) {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".rustup")).unwrap();
    let agent = AgentEnvironment::from_iter([
        ("PATH", OsString::from("/usr/local/bin:/bin")),
        ("HOME", home.path().into()),
        ("LANG", "C".into()),
        ("A_KEY", "of the agent".into()),
        ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ("GIT_DIR", "/elsewhere".into()),
    ]);
    (home, agent)
}

fn manifest() -> ManifestVariables {
    let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let mut set = one("A_KEY", "of the manifest");
    set.insert("LANG".to_owned(), "de_DE".to_owned());
    ManifestVariables {
        set,
        as_root: one("AS_ROOT", "1"),
        named: vec!["A_KEY".to_owned(), "ABSENT".to_owned()],
        login: None,
    }
}

fn work() -> WorkNames {
    WorkNames {
        task: TaskId::from_random(1),
        session: SessionId::from_random(2),
        base_context: None,
    }
}

/// Names, values and sources, as a person would compare them.
fn told(environment: &Environment) -> Vec<(&str, &str, From)> {
    let told = environment.iter().map(|(name, variable)| {
        let value = variable.value.to_str().unwrap();
        (name.to_str().unwrap(), value, variable.source)
    });
    told.collect()
}

#[test]
fn sessions_setup_and_verify_get_what_is_theirs() {
    let (home, agent) = agent();
    let rustup = home.path().join(".rustup");
    let rustup = rustup.to_str().unwrap();
    let (places, manifest) = (Places::within(Path::new("/scratch")), manifest());
    let names = WorkNames {
        base_context: Some("/contexts/a".into()),
        ..work()
    };
    let (task, session) = (names.task.to_string(), names.session.to_string());
    let in_session = EnvironmentParts {
        agent: &agent,
        places: &places,
        manifest: Some(&manifest),
        root: true,
        task: None,
        path: None,
        work: Some(&names),
    };
    assert_eq!(
        told(&Environment::of(&in_session)),
        [
            ("AS_ROOT", "1", From::ManifestAsRoot),
            ("A_KEY", "of the agent", From::ManifestNamed),
            ("HOME", "/scratch/home", From::Places),
            ("KAGE_BASE_CONTEXT", "/contexts/a", From::Work),
            ("KAGE_SESSION", session.as_str(), From::Work),
            ("KAGE_TASK", task.as_str(), From::Work),
            ("LANG", "de_DE", From::Manifest),
            ("PATH", "/usr/local/bin:/bin", From::Agent),
            ("RUSTUP_HOME", rustup, From::AgentHome),
            ("TERM", "dumb", From::Constant),
            ("TMPDIR", "/scratch/tmp", From::Places),
        ]
    );

    // Setup and verify run in the same one: without keys, and with the programs that were there.
    let names = work();
    let in_verify = EnvironmentParts {
        manifest: None,
        path: Some(OsStr::new("/bin")),
        work: Some(&names),
        ..in_session
    };
    assert_eq!(
        told(&Environment::of(&in_verify)),
        [
            ("HOME", "/scratch/home", From::Places),
            ("KAGE_SESSION", session.as_str(), From::Work),
            ("KAGE_TASK", task.as_str(), From::Work),
            ("LANG", "C", From::Agent),
            ("PATH", "/bin", From::Programs),
            ("RUSTUP_HOME", rustup, From::AgentHome),
            ("TERM", "dumb", From::Constant),
            ("TMPDIR", "/scratch/tmp", From::Places),
        ]
    );

    // The tools of a model of an API have no keys either.
    let of_tools = EnvironmentParts {
        path: None,
        ..in_verify
    };
    let tools = Environment::of(&of_tools);
    assert_eq!(tools.get("PATH").unwrap().source, From::Agent);
    assert!(tools.get("A_KEY").is_none() && tools.get("GIT_DIR").is_none());

    // A program that is asked for its version works on nothing.
    let asked = EnvironmentParts { work: None, ..of_tools };
    assert!(Environment::of(&asked).get("KAGE_TASK").is_none());
    // Not as root, not the values for root.
    let not_root = EnvironmentParts {
        root: false,
        ..in_session
    };
    assert!(Environment::of(&not_root).get("AS_ROOT").is_none());
}

#[test]
fn a_task_adds_to_what_the_agent_gives_and_takes_nothing_from_an_adapter() {
    let (_home, agent) = agent();
    let (places, manifest) = (Places::within(Path::new("/scratch")), manifest());
    let set = [("LANG", "C.UTF-8"), ("GOPATH", "/go"), ("HOME", "/root")];
    let task = TaskVariables {
        set: set.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        passed: [("DATABASE_URL".to_owned(), "postgres://me:hidden@db".into())].into(),
        missing: vec!["NPM_TOKEN".to_owned()],
    };
    let in_verify = EnvironmentParts {
        agent: &agent,
        places: &places,
        manifest: None,
        root: false,
        task: Some(&task),
        path: None,
        work: None,
    };
    let verify = Environment::of(&in_verify);
    let value = |environment: &Environment, name| Some(environment.get(name)?.value.clone().into_string().unwrap());
    let of = |name| value(&verify, name);
    assert_eq!(of("DATABASE_URL").as_deref(), Some("postgres://me:hidden@db"));
    assert_eq!(verify.get("DATABASE_URL").unwrap().source, From::Task);
    assert_eq!(
        (of("LANG").as_deref(), of("GOPATH").as_deref()),
        (Some("C.UTF-8"), Some("/go"))
    );
    assert_eq!((of("HOME").as_deref(), of("NPM_TOKEN")), (Some("/scratch/home"), None));
    let others = TaskVariables {
        passed: [("DATABASE_URL".to_owned(), "another".into())].into(),
        ..task.clone()
    };
    let other = EnvironmentParts {
        task: Some(&others),
        ..in_verify
    };
    assert_eq!(
        verify.digest(),
        Environment::of(&other).digest(),
        "a digest of a short secret would tell it"
    );
    let in_session = EnvironmentParts {
        manifest: Some(&manifest),
        ..in_verify
    };
    assert_eq!(value(&Environment::of(&in_session), "LANG").as_deref(), Some("de_DE"));
    let shown = format!("{task:?}");
    assert!(shown.contains("DATABASE_URL") && !shown.contains("hidden"), "{shown}");
}

#[test]
fn the_digest_is_that_of_the_machine_and_not_of_the_attempt() {
    let (_home, agent) = agent();
    let (names, others) = (work(), work());
    let others = WorkNames {
        task: TaskId::from_random(7),
        ..others
    };
    let (here, there) = (Places::within(Path::new("/1")), Places::within(Path::new("/2")));
    let parts = EnvironmentParts {
        agent: &agent,
        places: &here,
        manifest: None,
        root: false,
        task: None,
        path: None,
        work: Some(&names),
    };
    let digest = |parts: EnvironmentParts<'_>| Environment::of(&parts).digest();
    let first = digest(parts);
    let next = EnvironmentParts {
        places: &there,
        work: Some(&others),
        ..parts
    };
    assert_eq!(digest(next), first);
    let path = Some(OsStr::new("/bin"));
    assert_ne!(digest(EnvironmentParts { path, ..parts }), first);

    let agent = AgentEnvironment::from_iter([("PATH", "/bin"), ("LANG", "C")]);
    let parts = EnvironmentParts { agent: &agent, ..parts };
    // It stays the same, since what is kept is found by it.
    let stable = Digest::of(b"LANG\0C\0PATH\0/bin\0TERM\0dumb\0");
    assert_eq!(digest(parts), stable);
}

#[test]
fn a_program_gets_these_variables_and_no_others() {
    let environment = Environment::from_iter([("PATH", "/usr/bin:/bin"), ("A", "b c")]);
    let mut command = std::process::Command::new("/usr/bin/env");
    command.env("OF_THE_CALLER", "1");
    set(&mut command, environment.pairs());
    let printed = command.output().unwrap().stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), "A=b c\nPATH=/usr/bin:/bin\n");
}

#[test]
fn programs_behind_a_door_find_it_whatever_else_is_set() {
    let agent = AgentEnvironment::from_iter([
        ("HTTPS_PROXY", "http://me:secret@proxy.corp:3128"),
        ("no_proxy", "corp"),
        ("PATH", "/bin"),
    ]);
    let task = TaskVariables {
        set: BTreeMap::from([("MAVEN_OPTS".to_owned(), "-Xmx1g".to_owned())]),
        ..TaskVariables::default()
    };
    let parts = EnvironmentParts {
        agent: &agent,
        places: &Places::within(Path::new("/scratch")),
        manifest: None,
        root: false,
        task: Some(&task),
        path: None,
        work: None,
    };
    let outside = Environment::of(&parts);
    let inside = outside.clone().behind_door(1234);
    let value = |name: &str| inside.get(name).map(|found| found.value.to_str().unwrap());
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "npm_config_proxy",
        "CARGO_HTTP_PROXY",
    ] {
        assert_eq!(value(name), Some("http://127.0.0.1:1234"), "{name}");
        assert_eq!(inside.get(name).unwrap().source, From::Door);
    }
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        assert_eq!(value(name), Some("http://127.0.0.1:1234"), "{name}");
    }
    assert_eq!(value("NO_PROXY"), Some("localhost,127.0.0.1,::1"));
    assert_eq!(value("no_proxy"), value("NO_PROXY"));
    assert_eq!(value("NODE_USE_ENV_PROXY"), Some("1"));
    let maven = value("MAVEN_OPTS").unwrap();
    assert!(maven.starts_with("-Xmx1g -Dhttp.proxyHost=127.0.0.1 ") && maven.contains("-Dhttps.proxyPort=1234"));
    assert!(value("GRADLE_OPTS").unwrap().starts_with("-Dhttp.proxyHost"));
    let secret = inside
        .pairs()
        .any(|(_, value)| value.to_str().unwrap().contains("secret"));
    assert!(!secret, "what lets the agent in at its proxy stays with the agent");
    // Verdicts that were found with other ways out are not taken for these.
    assert_ne!(outside.digest(), inside.digest());
}
