//! Programs that are let in by the login of a person, with scripts in place of them.

use kage_core::fleet::AdapterAccess;
use kage_core::time::Timestamp;

use super::*;

const REFRESH: &str = "sk-ant-ort01-canary-5d1f";
const ACCESS: &str = "sk-ant-oat01-of-the-session";
const HOUR: u64 = 3_600_000;

fn millis() -> u64 {
    crate::adapters::local_time().now.as_millis()
}

/// Logs the person in whose home this is.
fn log_in(place: &mut Place, end: u64) {
    let folder = place.path("home/.claude");
    fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "{{\"claudeAiOauth\":{{\"accessToken\":\"{ACCESS}\",\"refreshToken\":\"{REFRESH}\",\"expiresAt\":{end},\
         \"scopes\":[\"user:inference\"],\"subscriptionType\":\"max\"}}}}"
    );
    fs::write(folder.join(".credentials.json"), text).unwrap();
    place.env.insert("HOME".into(), place.path("home").into());
}

async fn claude(place: &Place) -> Arc<dyn Adapter> {
    let config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    let registry = crate::adapters::load(config).await.unwrap();
    let name = "claude-code".parse::<kage_core::id::AdapterName>().unwrap();
    Arc::clone(&registry[&name])
}

async fn admitted(adapter: &Arc<dyn Adapter>, place: &Place) -> SessionInput {
    SessionInput {
        admission: adapter.admit(Duration::from_secs(600)).await.unwrap(),
        ..place.input("", "task")
    }
}

const CLAUDE: &str = "if [ \"$1\" = --version ]; then echo '2.1.330 (Claude Code)'; exit; fi\n";

#[tokio::test]
async fn a_person_who_is_logged_in_needs_no_key_and_sessions_get_an_access_token_alone() {
    let mut place = Place::new();
    log_in(&mut place, millis() + 8 * HOUR);
    place.program(
        "claude",
        &format!(
            "{CLAUDE}env; echo \"folder=$CLAUDE_CONFIG_DIR\"; grep -rl canary \"$HOME\" \"$CLAUDE_CONFIG_DIR\" . 2>/dev/null"
        ),
    );
    let adapter = claude(&place).await;
    let info = adapter.info();
    assert_eq!(info.unavailable, None);
    let words = info.access.unwrap().words(Timestamp::from_millis(millis()));
    assert!(words.starts_with("logged in (max), token until "), "{words}");

    let input = admitted(&adapter, &place).await;
    assert_eq!(Secret::values(&input.admission.secrets()), [ACCESS]);
    let told = run(Arc::clone(&adapter), input, CancellationToken::new()).await;
    assert!(
        told.stdout.contains(&format!("CLAUDE_CODE_OAUTH_TOKEN={ACCESS}\n")),
        "{}",
        told.stdout
    );
    let scratch = place.path("scratch").display().to_string();
    for own in [format!("HOME={scratch}/home\n"), format!("folder={scratch}/claude\n")] {
        assert!(told.stdout.contains(&own), "{}", told.stdout);
    }
    assert!(!told.stdout.contains("canary"), "{}", told.stdout);
    let mut found = Vec::new();
    files_with(&place.path("scratch"), REFRESH, &mut found);
    assert_eq!(found, Vec::<PathBuf>::new());
}

fn files_with(folder: &Path, text: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files_with(&entry.path(), text, found),
            false if fs::read_to_string(entry.path()).is_ok_and(|content| content.contains(text)) => {
                found.push(entry.path());
            }
            false => {}
        }
    }
}

#[tokio::test]
async fn a_key_wins_over_a_login_and_without_both_it_is_said_what_to_do() {
    let mut place = Place::new();
    place.program("claude", &format!("{CLAUDE}env"));
    place.env.insert("HOME".into(), place.path("home").into());
    let nobody = claude(&place).await.info();
    let why = nobody.unavailable.unwrap();
    assert_eq!(
        why,
        "nobody is logged in: start `claude` and use /login; or set ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN or \
         CLAUDE_CODE_OAUTH_TOKEN in the shell of `kage run` or, on another machine, where its agent starts"
    );

    log_in(&mut place, millis() + HOUR);
    // The login is where the program's own variable says, and sessions are not sent there.
    place
        .env
        .insert("CLAUDE_CONFIG_DIR".into(), place.path("home/.claude").into());
    place.env.remove(OsStr::new("HOME"));
    let adapter = claude(&place).await;
    let told = run(
        Arc::clone(&adapter),
        admitted(&adapter, &place).await,
        CancellationToken::new(),
    )
    .await;
    assert!(
        told.stdout.contains(&format!("CLAUDE_CODE_OAUTH_TOKEN={ACCESS}\n")),
        "{}",
        told.stdout
    );
    let own = format!("CLAUDE_CONFIG_DIR={}\n", place.path("scratch/claude").display());
    assert!(told.stdout.contains(&own), "{}", told.stdout);

    place.env.insert("ANTHROPIC_API_KEY".into(), "sk-ant-key".into());
    let adapter = claude(&place).await;
    let name = "ANTHROPIC_API_KEY".to_owned();
    assert_eq!(adapter.info().access, Some(AdapterAccess::Variable { name }));
    let input = admitted(&adapter, &place).await;
    assert!(input.admission.secrets().is_empty());
    let told = run(adapter, input, CancellationToken::new()).await;
    assert!(
        !told.stdout.contains("OAUTH_TOKEN") && told.stdout.contains("sk-ant-key"),
        "{}",
        told.stdout
    );
}

#[tokio::test]
async fn a_token_that_ends_in_mid_run_is_no_refused_login() {
    let mut place = Place::new();
    let refused = "echo 'API Error: 401 OAuth token has expired · Please run /login' >&2; exit 1";
    place.program("claude", &format!("{CLAUDE}{refused}"));
    for (left, expected) in [(100, FailureKind::TokenExpired), (HOUR, FailureKind::Auth)] {
        log_in(&mut place, millis() + HOUR);
        let adapter = claude(&place).await;
        let mut input = admitted(&adapter, &place).await;
        if let Some(lent) = &mut input.admission.lent {
            lent.mark.until = Some(Timestamp::from_millis(millis() + left));
        }
        // A login without a refresh token cannot have another one.
        let file = place.path("home/.claude/.credentials.json");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("refreshToken", "was")).unwrap();
        let told = run(adapter, input, CancellationToken::new()).await;
        assert_eq!(kind(&told.end), Some(expected), "{:?}", told.end);
    }
}

#[tokio::test]
async fn a_program_that_owns_its_login_has_it_for_one_session_at_a_time() {
    let mut place = Place::new();
    fs::create_dir_all(place.path("home/.x")).unwrap();
    fs::write(
        place.path("home/.x/auth.json"),
        "{\"a\":\"access-1\",\"r\":\"refresh-1\"}",
    )
    .unwrap();
    place.env.insert("HOME".into(), place.path("home").into());
    place.program("x", "cat \"$X_HOME/auth.json\"; echo; echo $X_TOKEN");
    let manifest = "name = 'x'\ncommand = 'x'\n[login]\nfile = '~/.x/auth.json'\nfolder = 'X_HOME'\n\
                    log_in = 'run `x login`'\naccess = '/a'\nrefresh = '/r'\nsessions = 'one'";
    let adapter: Arc<dyn Adapter> = Arc::new(place.adapter(manifest).await);
    let first = adapter.reserve().unwrap();
    assert!(first.is_some());
    let why = adapter.reserve().unwrap_err();
    assert!(
        why.contains("another session uses the login in") && why.contains("cannot share"),
        "{why}"
    );
    let input = admitted(&adapter, &place).await;
    assert_eq!(
        Secret::values(&input.admission.secrets()),
        ["access-1", "refresh-1"],
        "both are masked"
    );
    let told = run(Arc::clone(&adapter), input, CancellationToken::new()).await;
    assert!(told.stdout.starts_with("{\"a\":\"access-1\""), "{}", told.stdout);
    drop(first);
    assert!(adapter.reserve().unwrap().is_some());
}

#[tokio::test]
async fn a_token_can_be_passed_in_a_file_and_one_file_has_one_owner() {
    let mut place = Place::new();
    fs::create_dir_all(place.path("home/.x")).unwrap();
    fs::write(
        place.path("home/.x/auth.json"),
        "{\"a\":\"access-1\",\"r\":\"refresh-1\"}",
    )
    .unwrap();
    place.env.insert("HOME".into(), place.path("home").into());
    place.program("x", "ls -l \"$X_HOME/auth.json\"; cat \"$X_HOME/auth.json\"");
    let manifest = "name = 'x'\ncommand = 'x'\nenv.set.X_HOME = '{scratch}/x'\n[login]\nfile = '~/.x/auth.json'\n\
                    log_in = 'run `x login`'\naccess = '/a'\nrefresh = '/r'\n\
                    [login.pass]\nfile = '{scratch}/x/auth.json'\ncontent = '{\"token\": \"{access_token}\"}'";
    let adapter: Arc<dyn Adapter> = Arc::new(place.adapter(manifest).await);
    let told = run(
        Arc::clone(&adapter),
        admitted(&adapter, &place).await,
        CancellationToken::new(),
    )
    .await;
    assert!(told.stdout.starts_with("-rw-------"), "{}", told.stdout);
    assert!(told.stdout.contains("{\"token\": \"access-1\"}"), "{}", told.stdout);

    let logins = crate::adapters::logins().unwrap();
    let config = AdapterConfig::new(AgentEnvironment::new(place.env.clone()), Runner::default());
    let of = |text: &str| Manifest::parse(text, Path::new("/x.toml")).unwrap();
    let twice = [
        of(manifest),
        of(&manifest.replace("name = 'x'", "name = 'y'")),
        of(&manifest.replace("name = 'x'", "name = 'z'").replace("'/a'", "'/b'")),
    ];
    let mut problems = Vec::new();
    for manifest in twice {
        problems.push(CliAdapter::new(manifest, &config, &logins).await.info().unavailable);
    }
    assert_eq!(problems[..2], [None, None]);
    assert!(
        problems[2].as_ref().unwrap().contains("describes the login in"),
        "{problems:?}"
    );
}

#[test]
fn nothing_of_a_login_is_shown_by_accident() {
    let admission = Admission {
        lent: None,
        readable: vec![crate::logins::Token::new("access-1").unwrap()],
    };
    assert!(!format!("{admission:?}").contains("access-1"));
}
