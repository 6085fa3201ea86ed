//! Which tasks a list has: what the coordinator can be asked, and what only this program looks at.

use std::path::Path;

use kage_core::time::Timestamp;
use kage_git::UserRepo;
use kage_proto::convert::time::stamp;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::{Ls, State};
use crate::connect::Access;
use crate::exit::Refusal;
use crate::here::Here;
use crate::settings::time;
use crate::view;

/// What a listed task must be.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    /// What the coordinator looks at.
    pub(crate) filter: v1::TaskFilter,
    /// Name of a repository, whose digest may be left out.
    repository: Option<String>,
    /// Lower-case words, each of which stands somewhere in what is listed of a task.
    words: Vec<String>,
}

impl Wanted {
    /// Tasks that a session of works, or waits.
    pub(crate) fn running() -> Self {
        Self {
            filter: v1::TaskFilter {
                states: vec![v1::TaskState::Running.into()],
                ..v1::TaskFilter::default()
            },
            ..Self::default()
        }
    }

    /// What the flags say.
    ///
    /// # Errors
    /// When a time or a repository that is named cannot be understood.
    pub(crate) async fn of(access: &Access, args: &Ls, now: Timestamp) -> anyhow::Result<Self> {
        let mut wanted = Self {
            filter: v1::TaskFilter {
                mine: args.mine,
                states: args.state.iter().map(|state| wire(*state).into()).collect(),
                created_from: args
                    .since
                    .as_deref()
                    .map(|text| time::moment(text, now).map_err(Refusal::usage))
                    .transpose()?
                    .map(stamp),
                ..v1::TaskFilter::default()
            },
            repository: None,
            words: args
                .search
                .iter()
                .flat_map(|text| text.split_whitespace())
                .map(str::to_lowercase)
                .collect(),
        };
        if let Some(asked) = &args.repo {
            if is_folder(asked) {
                let repository = UserRepo::discover(Path::new(asked)).await?;
                let here = Here::new(&repository, &access.machine);
                let Some(name) = here.name(access).await? else {
                    return Err(
                        Refusal::not_found(format!("no task was run in {}", repository.root().display())).into(),
                    );
                };
                wanted.filter.repository = name.to_string();
            } else {
                wanted.repository = Some(asked.clone());
            }
        }
        Ok(wanted)
    }

    /// True if a task that the coordinator sent is what this program looks for, too.
    pub(crate) fn takes(&self, task: &v1::Task) -> bool {
        let name = view::repository(task).unwrap_or_default();
        let is_repository = self.repository.as_ref().is_none_or(|asked| {
            let rest = name.strip_prefix(asked.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        });
        if !is_repository || self.words.is_empty() {
            return is_repository;
        }
        let mut text = format!("{} {name} {}", task.id, task.prompt_excerpt);
        for session in &task.sessions {
            text += &format!(" {} {}", session.name, view::adapter(session));
        }
        let text = text.to_lowercase();
        self.words.iter().all(|word| text.contains(word))
    }

    /// The newest of these tasks.
    ///
    /// # Errors
    /// When the coordinator cannot answer.
    pub(crate) async fn newest(&self, access: &Access, limit: usize) -> Result<Vec<v1::Task>, ApiError> {
        let mut tasks = Vec::new();
        let mut page_token = String::new();
        while tasks.len() < limit {
            // What is passed over here does not count.
            let all_count = self.repository.is_none() && self.words.is_empty();
            let page_size = if all_count { limit - tasks.len() } else { 100 };
            let request = v1::ListTasksRequest {
                project: access.project.to_string(),
                page_size: u32::try_from(page_size).unwrap_or(100).min(100),
                page_token,
                filter: Some(self.filter.clone()),
                ..Default::default()
            };
            let page = access.client.tasks().list_tasks(request).await?.into_inner();
            tasks.extend(page.tasks.into_iter().filter(|task| self.takes(task)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        tasks.truncate(limit);
        Ok(tasks)
    }
}

/// A name of a repository has no `/`, and a folder is meant by `.`.
fn is_folder(asked: &str) -> bool {
    asked.contains('/') || asked.starts_with('.')
}

const fn wire(state: State) -> v1::TaskState {
    match state {
        State::Running => v1::TaskState::Running,
        State::Succeeded => v1::TaskState::Succeeded,
        State::Failed => v1::TaskState::Failed,
        State::Cancelled => v1::TaskState::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(repository: &str, prompt: &str) -> v1::Task {
        v1::Task {
            id: "0123456789abcdef".into(),
            prompt_excerpt: prompt.into(),
            spec: Some(v1::TaskSpec {
                repository: Some(v1::Repository {
                    name: repository.into(),
                    ..v1::Repository::default()
                }),
                ..v1::TaskSpec::default()
            }),
            sessions: vec![v1::Session {
                name: "codex-1".into(),
                adapter: "codex".into(),
                model: "gpt-5.5".into(),
                ..v1::Session::default()
            }],
            ..v1::Task::default()
        }
    }

    #[test]
    fn a_task_has_every_word_that_is_searched_for() {
        let takes = |words: &[&str], repository: Option<&str>| {
            let wanted = Wanted {
                words: words.iter().map(|word| (*word).to_owned()).collect(),
                repository: repository.map(str::to_owned),
                ..Wanted::default()
            };
            wanted.takes(&task("shop-1a2b3c", "Fix the LOGIN bug"))
        };
        assert!(takes(&[], None));
        assert!(takes(&["login", "codex"], None) && takes(&["gpt-5.5"], None) && takes(&["0123"], None));
        assert!(!takes(&["login", "claude"], None));
        assert!(takes(&[], Some("shop")) && takes(&[], Some("shop-1a2b3c")) && takes(&["fix"], Some("shop")));
        assert!(!takes(&[], Some("sho")) && !takes(&["fix"], Some("other")));
    }
}
