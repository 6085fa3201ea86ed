//! A token endpoint that rotates refresh tokens: each works once, and one that comes again ends all
//! tokens of its login, as RFC 9700 (section 4.14.2) has it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How the next request is refused, whatever it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    Grant,
    Away,
}

type Before = Box<dyn FnOnce() -> Option<Refusal> + Send>;

#[derive(Default)]
struct Tokens {
    number: u32,
    current: Option<String>,
    spent: BTreeSet<String>,
    accepted: BTreeSet<String>,
    asked: u32,
    exchanged: u32,
    reused: u32,
    before: Option<Before>,
}

#[derive(Clone)]
pub(super) struct Provider {
    tokens: Arc<Mutex<Tokens>>,
    life: Duration,
    address: SocketAddr,
    _serving: Arc<JoinSet<()>>,
}

impl Provider {
    pub(super) async fn start(life: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tokens = Arc::<Mutex<Tokens>>::default();
        let served = Arc::clone(&tokens);
        let answer =
            move |request: String| async move { answer(&served, life, &serde_json::from_str(&request).unwrap()) };
        let app = Router::new().route("/token", post(answer));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            tokens,
            life,
            address,
            _serving: Arc::new(serving),
        }
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap()
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// A new login: an access token and a refresh token.
    pub(super) fn log_in(&self) -> (String, String) {
        self.tokens().next()
    }

    /// What a client would do that is in this process.
    pub(super) fn exchange(&self, refresh: &str) -> Option<(String, String, Duration)> {
        let (access, refresh) = self.tokens().exchange(refresh)?;
        Some((access, refresh, self.life))
    }

    pub(super) fn lets_in(&self, access: &str) -> bool {
        self.tokens().accepted.contains(access)
    }

    pub(super) fn is_current(&self, refresh: &str) -> bool {
        self.tokens().current.as_deref() == Some(refresh)
    }

    pub(super) fn revoke(&self) {
        let mut tokens = self.tokens();
        tokens.current = None;
        tokens.accepted.clear();
    }

    /// Does something when the next request comes, before it is answered.
    pub(super) fn before_next(&self, before: impl FnOnce() -> Option<Refusal> + Send + 'static) {
        self.tokens().before = Some(Box::new(before));
    }

    /// Requests over the network.
    pub(super) fn asked(&self) -> u32 {
        self.tokens().asked
    }

    pub(super) fn exchanged(&self) -> u32 {
        self.tokens().exchanged
    }

    pub(super) fn reused(&self) -> u32 {
        self.tokens().reused
    }
}

impl Tokens {
    fn next(&mut self) -> (String, String) {
        self.number += 1;
        let (access, refresh) = (
            format!("access-{:06}", self.number),
            format!("refresh-{:06}", self.number),
        );
        // Some servers end the access tokens before.
        self.accepted = [access.clone()].into();
        self.spent.extend(self.current.replace(refresh.clone()));
        (access, refresh)
    }

    fn exchange(&mut self, refresh: &str) -> Option<(String, String)> {
        if self.spent.contains(refresh) {
            self.reused += 1;
            self.current = None;
            self.accepted.clear();
        }
        if self.current.as_deref() != Some(refresh) {
            return None;
        }
        self.exchanged += 1;
        Some(self.next())
    }
}

fn answer(tokens: &Mutex<Tokens>, life: Duration, request: &Value) -> (StatusCode, String) {
    assert_eq!(request["grant_type"], "refresh_token");
    assert_eq!(request["client_id"], "client-1");
    let before = {
        let mut tokens = tokens.lock().unwrap();
        tokens.asked += 1;
        tokens.before.take()
    };
    match before.and_then(|before| before()) {
        Some(Refusal::Grant) => return (StatusCode::BAD_REQUEST, json!({"error": "invalid_grant"}).to_string()),
        Some(Refusal::Away) => return (StatusCode::SERVICE_UNAVAILABLE, json!({"error": "busy"}).to_string()),
        None => {}
    }
    let sent = request["refresh_token"].as_str().unwrap();
    match tokens.lock().unwrap().exchange(sent) {
        Some((access, refresh)) => {
            let answer = json!({
                "access_token": access, "refresh_token": refresh, "expires_in": life.as_secs_f64(), "token_type": "Bearer",
            });
            (StatusCode::OK, answer.to_string())
        }
        None => (
            StatusCode::BAD_REQUEST,
            json!({"error": "invalid_grant", "error_description": sent}).to_string(),
        ),
    }
}
