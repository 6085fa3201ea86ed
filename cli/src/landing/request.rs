//! A pull request for a branch that has a result: pushes the branch with the person's own git, and has
//! `gh` or `glab` open the request, where they are there. Otherwise the page is named on which a person
//! opens it.

use std::io;
use std::process::{Output, Stdio};

use anyhow::Context as _;
use kage_git::UserRepo;
use kage_git::landing::Branch;
use kage_git::landing::push::{Remote, push};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::forge::{Address, Forge};
use crate::exit::Refusal;
use crate::output::note;
use crate::view;

/// What a request is made of.
#[derive(Debug)]
pub(crate) struct PullRequest<'a> {
    pub(crate) repository: &'a UserRepo,
    pub(crate) branch: &'a Branch,
    /// Where the branch is pushed.
    pub(crate) remote: &'a Remote,
    /// Whose branch it goes into, if that is another one.
    pub(crate) upstream: Option<&'a Remote>,
    /// The branch that it goes into; `None`: the forge's own choice.
    pub(crate) target: Option<&'a str>,
    pub(crate) title: &'a str,
    pub(crate) body: &'a str,
    /// Kage made the branch.
    pub(crate) made: bool,
    pub(crate) hooks: bool,
}

/// How it ended: the branch is pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opened {
    /// The request is at this address.
    Request(String),
    /// A person opens it there.
    Page(String),
    /// The remote is on no host that has pages.
    Nowhere,
}

impl PullRequest<'_> {
    /// Pushes and opens.
    ///
    /// # Errors
    /// When the push fails, or the program that opens requests does; `again` is the command that tries it
    /// once more.
    pub(crate) async fn open(&self, again: &str) -> anyhow::Result<Opened> {
        let (branch, remote) = (self.branch, &self.remote.name);
        let pushed = push(self.repository, self.remote, branch, self.made, self.hooks).await;
        if let Err(error) = pushed {
            tracing::debug!(%error, "the push failed");
            let why =
                format!("git push failed; {branch} has the result, and {remote} has not; mend that, then `{again}`");
            return Err(Refusal::usage(why).into());
        }
        let Some(address) = Address::parse(&self.remote.url) else {
            return Ok(Opened::Nowhere);
        };
        let upstream = self.upstream.and_then(|it| Address::parse(&it.url));
        let upstream = upstream.filter(|it| it.host == address.host && it.path != address.path);
        let page = address.opening_page(branch.as_str(), self.target, upstream.as_ref());
        let Some((program, arguments, input)) = self.program(&address, upstream.as_ref()) else {
            return Ok(Opened::Page(page));
        };
        let Some(done) = self.run(program, &arguments, input).await? else {
            note(&format!(
                "{program} is not installed here, so the request is opened by hand"
            ));
            return Ok(Opened::Page(page));
        };
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (said(&done.stdout), said(&done.stderr));
        let link = |text: &str| {
            let mut words = text.split_whitespace().rev();
            words
                .find(|word| word.starts_with("https://") || word.starts_with("http://"))
                .map(str::to_owned)
        };
        if done.status.success() {
            return Ok(link(&out)
                .or_else(|| link(&err))
                .map_or(Opened::Page(page), Opened::Request));
        }
        if let (true, Some(there)) = (err.contains("already exists"), link(&err)) {
            return Ok(Opened::Request(there));
        }
        let why = view::one_line(err.trim().lines().last().unwrap_or("it said nothing"), 300);
        let text = format!("{branch} is pushed, and {program} did not open a pull request ({why}); open it at {page}");
        Err(Refusal::usage(text).into())
    }

    /// The program that opens requests of this forge, its arguments and its input.
    fn program(&self, address: &Address, upstream: Option<&Address>) -> Option<(&'static str, Vec<String>, &str)> {
        let into = upstream.unwrap_or(address).for_tools();
        let head = self.branch.as_str();
        let (program, arguments, input) = match address.forge {
            Forge::GitHub => {
                let owner = address.path.split('/').next().unwrap_or_default();
                let head = upstream.map_or_else(|| head.to_owned(), |_| format!("{owner}:{head}"));
                let mut arguments = vec!["pr", "create", "--repo", &into, "--head", &head, "--title", self.title];
                arguments.extend(["--body-file", "-"]);
                arguments.extend(self.target.map(|it| ["--base", it]).into_iter().flatten());
                ("gh", owned(&arguments), self.body)
            }
            Forge::GitLab => {
                let mut arguments = vec![
                    "mr",
                    "create",
                    "--repo",
                    &into,
                    "--source-branch",
                    head,
                    "--title",
                    self.title,
                ];
                arguments.extend(["--description", self.body, "--yes"]);
                arguments.extend(self.target.map(|it| ["--target-branch", it]).into_iter().flatten());
                let fork = address.for_tools();
                if upstream.is_some() {
                    arguments.extend(["--head", &fork]);
                }
                ("glab", owned(&arguments), "")
            }
            Forge::Bitbucket | Forge::BitbucketServer | Forge::Gitea | Forge::Unknown => return None,
        };
        Some((program, arguments, input))
    }

    /// Runs it in the person's environment; `None`: there is no such program.
    async fn run(&self, program: &str, arguments: &[String], input: &str) -> anyhow::Result<Option<Output>> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.repository.root())
            .env("GH_PROMPT_DISABLED", "1")
            .env("NO_PROMPT", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            started => started.with_context(|| format!("cannot start {program}"))?,
        };
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // It ended before it had read everything; its exit code tells.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        Ok(Some(child.wait_with_output().await?))
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|it| (*it).to_owned()).collect()
}
