//! The person's own program: it refreshes the login whenever it likes, under the locks that the rule
//! names, as `claude` does.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::now;
use super::provider::Provider;

pub(super) struct Person {
    file: PathBuf,
    provider: Provider,
}

impl Person {
    pub(super) fn new(file: PathBuf, provider: Provider) -> Self {
        Self { file, provider }
    }

    /// Refreshes and writes, each under its locks.
    pub(super) async fn refresh(&self) {
        let folder = self.file.parent().unwrap();
        let locks = [folder.join(".refresh.lock"), folder.with_extension("lock")];
        for lock in &locks {
            take(lock).await;
        }
        let (access, refresh, life) = self.exchanged();
        let write = folder.join(".write.lock");
        take(&write).await;
        self.write(&access, &refresh, life);
        for lock in [&write, &locks[1], &locks[0]] {
            fs::remove_dir(lock).unwrap();
        }
    }

    pub(super) fn refresh_without_locks(&self) {
        let (access, refresh, life) = self.exchanged();
        self.write(&access, &refresh, life);
    }

    fn exchanged(&self) -> (String, String, Duration) {
        let refresh = self.read()["oauth"]["refresh"].as_str().unwrap().to_owned();
        self.provider.exchange(&refresh).expect("the person is logged in")
    }

    fn read(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(&self.file).unwrap()).unwrap()
    }

    fn write(&self, access: &str, refresh: &str, life: Duration) {
        let mut value = self.read();
        value["oauth"]["access"] = access.into();
        value["oauth"]["refresh"] = refresh.into();
        value["oauth"]["end"] = (now() + life).as_millis().into();
        let beside = self.file.with_extension("mine");
        fs::write(&beside, value.to_string()).unwrap();
        fs::rename(beside, &self.file).unwrap();
    }
}

/// Waits for a lock without a limit: the test has one.
async fn take(lock: &PathBuf) {
    while fs::create_dir(lock).is_err() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
