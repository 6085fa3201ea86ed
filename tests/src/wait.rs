//! Waiting for a condition with a deadline: the only way in which tests let time pass.

use std::time::{Duration, Instant};

/// How long anything may take before a test fails. Generous: a busy machine is not a bug.
pub const DEADLINE: Duration = Duration::from_secs(90);

const POLL: Duration = Duration::from_millis(20);

/// Polls until there is an answer; `None` when there is none at the deadline.
pub async fn poll<T>(mut condition: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = condition().await {
            return Some(answer);
        }
        if start.elapsed() > DEADLINE {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Polls until there is an answer. Panics at the deadline with `what` was waited for.
pub async fn wait_for<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    let answer = poll(condition).await;
    answer.unwrap_or_else(|| panic!("waited {DEADLINE:?} in vain: {what}"))
}
