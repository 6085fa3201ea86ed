//! The owner of a login against a server that rotates refresh tokens as real ones do: each works once,
//! and whoever sends one again ends the login for everybody.

mod person;
mod provider;

use std::fs;
use std::time::SystemTime;

use serde_json::Value;
use tokio::task::JoinSet;

use super::*;
use person::Person;
use provider::{Provider, Refusal};

const LIMIT: Duration = Duration::from_secs(3600);

/// A person who is logged in, a provider, and an owner of the login.
struct Place {
    folder: tempfile::TempDir,
    provider: Provider,
    rule: Arc<LoginRule>,
    tasks: TaskTracker,
}

fn client() -> reqwest::Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn now() -> Timestamp {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap())
}

impl Place {
    async fn new(life: Duration) -> Self {
        let provider = Provider::start(life).await;
        let rule = format!(
            "file = '~/home/auth.json'\nlog_in = 'run `x login`'\naccess = '/oauth/access'\nrefresh = '/oauth/refresh'\n\
             expires = '/oauth/end'\naccount = '/oauth/plan'\npass.env = 'X_TOKEN'\n\
             server = {{ url = '{}', client = 'client-1', request = 'json' }}\n\
             locks = {{ refresh = ['{{folder}}/.refresh.lock', '{{folder}}.lock'], write = ['{{folder}}/.write.lock'] }}",
            provider.url()
        );
        let rule: LoginRule = toml::from_str(&rule).unwrap();
        rule.check().unwrap();
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            provider,
            rule: Arc::new(rule),
            tasks: TaskTracker::new(),
        };
        fs::create_dir(place.folder.path().join("home")).unwrap();
        place
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("home/auth.json")
    }

    /// The person logs in; the access token lives as long as said from now.
    fn log_in(&self, left: Duration) {
        let (access, refresh) = self.provider.log_in();
        let end = (now() + left).as_millis();
        let text = format!(
            "{{\n  \"oauth\": {{\"access\":\"{access}\",\"refresh\":\"{refresh}\",\"end\":{end},\"plan\":\"max\"}},\n  \"mine\": 1.50\n}}\n"
        );
        fs::write(self.file(), text).unwrap();
    }

    fn owner(&self) -> LoginOwner {
        let parts = LoginParts {
            client: client(),
            clock: Arc::new(now),
        };
        LoginOwner::start(parts, Arc::clone(&self.rule), &self.file(), &self.tasks)
    }

    fn person(&self) -> Person {
        Person::new(self.file(), self.provider.clone())
    }

    fn value(&self, pointer: &str) -> Value {
        let text = fs::read_to_string(self.file()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        value.pointer(pointer).cloned().unwrap_or_default()
    }

    /// What is in the file works still.
    fn assert_logged_in(&self) {
        let refresh = self.value("/oauth/refresh");
        assert!(
            self.provider.is_current(refresh.as_str().unwrap()),
            "{refresh} is not the newest"
        );
        assert_eq!(self.provider.reused(), 0, "a refresh token was sent twice");
    }
}

#[tokio::test]
async fn sessions_across_an_expiry_share_one_refresh_and_get_no_refresh_token() {
    let place = Place::new(Duration::from_secs(7200)).await;
    place.log_in(Duration::ZERO);
    let owner = place.owner();
    let mut sessions = JoinSet::new();
    for _ in 0..8 {
        let owner = owner.clone();
        sessions.spawn(async move { owner.lend(LIMIT).await });
    }
    for lent in sessions.join_all().await {
        let lent = lent.unwrap();
        assert!(place.provider.lets_in(lent.token.reveal()));
        assert_eq!(Value::from(lent.token.reveal()), place.value("/oauth/access"));
    }
    assert_eq!(place.provider.exchanged(), 1);
    place.assert_logged_in();
    let text = fs::read_to_string(place.file()).unwrap();
    assert!(
        text.contains("\"mine\": 1.50\n}\n") && text.contains("\"plan\":\"max\""),
        "{text}"
    );
    let left = fs::read_dir(place.folder.path().join("home")).unwrap().count();
    assert_eq!(left, 1, "no lock and no other file is left");
    let state = owner.state().unwrap();
    assert_eq!(state.account.as_deref(), Some("max"));
}

#[tokio::test]
async fn the_person_stays_logged_in_while_their_own_program_and_many_sessions_refresh() {
    // Tokens end all the time: half of their life is over after a twentieth of a second.
    let place = Place::new(Duration::from_millis(100)).await;
    place.log_in(Duration::ZERO);
    let owner = place.owner();
    let mut working = JoinSet::new();
    for _ in 0..8 {
        let (owner, provider) = (owner.clone(), place.provider.clone());
        working.spawn(async move {
            for _ in 0..25 {
                let lent = owner.lend(LIMIT).await.unwrap();
                if !provider.lets_in(lent.token.reveal()) {
                    let end = owner.was_refused(lent.mark).await;
                    assert_ne!(end, TokenEnd::LoginRefused);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    for _ in 0..2 {
        let person = place.person();
        working.spawn(async move {
            for _ in 0..10 {
                person.refresh().await;
            }
        });
    }
    while let Some(worked) = working.join_next().await {
        worked.unwrap();
    }
    owner.settled().await;
    assert!(place.provider.exchanged() > 10, "{}", place.provider.exchanged());
    place.assert_logged_in();
    assert_eq!(place.value("/mine"), 1.5);
}

#[tokio::test]
async fn a_refused_refresh_token_that_somebody_replaced_is_no_end() {
    let place = Place::new(LIMIT * 2).await;
    place.log_in(Duration::ZERO);
    // Somebody who takes no lock refreshes between the owner's look and its request.
    let (file, provider) = (place.file(), place.provider.clone());
    place.provider.before_next(move || {
        let person = Person::new(file, provider);
        person.refresh_without_locks();
        Some(Refusal::Grant)
    });
    let lent = place.owner().lend(LIMIT).await.unwrap();
    assert!(place.provider.lets_in(lent.token.reveal()));
    assert_eq!(place.provider.exchanged(), 1, "only the other program's");
    place.assert_logged_in();
}

#[tokio::test]
async fn a_login_that_is_over_is_said_once_and_a_new_one_is_used() {
    let place = Place::new(LIMIT * 2).await;
    let owner = place.owner();
    assert_eq!(owner.state().unwrap_err(), "nobody is logged in: run `x login`");
    assert_eq!(
        owner.lend(LIMIT).await.unwrap_err().to_string(),
        "nobody is logged in; run `x login`, and run again"
    );
    place.log_in(Duration::ZERO);
    place.provider.revoke();
    for _ in 0..2 {
        let error = owner.lend(LIMIT).await.unwrap_err();
        assert_eq!(error.failure().kind, FailureKind::Auth);
        assert!(error.to_string().contains("refused its refresh token"), "{error}");
    }
    assert_eq!(place.provider.asked(), 1, "a refused token is not sent again");
    assert!(owner.state().is_err());
    place.log_in(LIMIT * 2);
    owner.lend(LIMIT).await.unwrap();
    assert!(owner.state().is_ok());
    assert_eq!(place.provider.asked(), 1);
}

#[tokio::test]
async fn a_server_that_is_away_costs_nothing_while_the_token_lives() {
    let place = Place::new(LIMIT * 2).await;
    place.log_in(Duration::from_secs(600));
    let owner = place.owner();
    place.provider.before_next(|| Some(Refusal::Away));
    let lent = owner.lend(LIMIT).await.unwrap();
    assert!(place.provider.lets_in(lent.token.reveal()));

    let other = Place::new(LIMIT * 2).await;
    other.log_in(Duration::ZERO);
    other.provider.before_next(|| Some(Refusal::Away));
    let error = other.owner().lend(LIMIT).await.unwrap_err();
    assert_eq!(error.failure().kind, FailureKind::Network, "{error}");
    assert!(error.to_string().contains("HTTP 503"), "{error}");
    other.owner().lend(LIMIT).await.unwrap();
    other.assert_logged_in();
}

#[tokio::test]
async fn tokens_that_cannot_be_written_are_used_and_written_later() {
    let place = Place::new(LIMIT * 2).await;
    place.log_in(Duration::ZERO);
    let owner = place.owner();
    // The file becomes a folder while the server answers, and nothing can replace it.
    let (file, aside) = (place.file(), place.folder.path().join("aside"));
    let moved = aside.clone();
    place.provider.before_next(move || {
        fs::rename(&file, &moved).unwrap();
        fs::create_dir(&file).unwrap();
        None
    });
    let first = owner.lend(LIMIT).await;
    assert!(first.is_err(), "the file cannot be read");
    fs::remove_dir(place.file()).unwrap();
    fs::rename(&aside, place.file()).unwrap();
    let lent = owner.lend(LIMIT).await.unwrap();
    assert!(place.provider.lets_in(lent.token.reveal()));
    assert_eq!(place.provider.exchanged(), 1);
    place.assert_logged_in();
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_spends_no_token() {
    let place = Place::new(LIMIT * 2).await;
    place.log_in(Duration::ZERO);
    let lock = place.folder.path().join("home/.refresh.lock");
    // A file in the place of the lock: neither can it be made, nor is it a lock that is stale.
    fs::write(&lock, "").unwrap();
    let file = fs::File::open(&lock).unwrap();
    file.set_modified(SystemTime::now() - 10 * LIMIT).unwrap();
    let error = place.owner().lend(LIMIT).await.unwrap_err();
    assert!(matches!(error, LendError::NotNow { .. }), "{error}");
    assert_eq!(place.provider.asked(), 0);
    fs::remove_file(&lock).unwrap();
    place.owner().lend(LIMIT).await.unwrap();
    place.assert_logged_in();
}

#[tokio::test]
async fn a_token_that_is_refused_before_its_end_is_replaced_once() {
    let place = Place::new(LIMIT * 2).await;
    place.log_in(LIMIT * 2);
    let owner = place.owner();
    let lent = owner.lend(LIMIT).await.unwrap();
    assert_eq!(owner.was_refused(lent.mark.clone()).await, TokenEnd::Early);
    let second = owner.lend(LIMIT).await.unwrap();
    assert_ne!(second.mark, lent.mark);
    assert_eq!(owner.was_refused(lent.mark).await, TokenEnd::Replaced);
    assert_eq!(owner.was_refused(second.mark).await, TokenEnd::LoginRefused);
    place.assert_logged_in();
}
