//! The sample repository of the demo: a shell script, and a test of it that fails.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::Context as _;
use kage_git::UserRepo;

/// The task of the sessions.
pub(super) const PROMPT: &str = "The tests in test.sh fail: total in price.sh gives wrong prices. Fix price.sh.";
/// The command that checks results.
pub(super) const VERIFY: &str = "sh test.sh";

const PRICE: &str = include_str!("../../data/demo/price.sh");
const TEST: &str = include_str!("../../data/demo/test.sh");

/// Makes the repository, with everything committed.
pub(super) async fn create(root: &Path) -> anyhow::Result<UserRepo> {
    fs::create_dir_all(root)?;
    fs::write(root.join("price.sh"), PRICE)?;
    fs::write(root.join("test.sh"), TEST)?;
    kage_git::creation::create(root, "A shop's prices, and a test that fails").await?;
    Ok(UserRepo::discover(root).await?)
}

/// Runs the sample's test as a person would. Its output is returned, not printed.
pub(super) async fn test(root: &Path) -> anyhow::Result<(ExitStatus, String)> {
    let output = tokio::process::Command::new("sh")
        .arg("test.sh")
        .current_dir(root)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .context("cannot run sh")?;
    Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
}
