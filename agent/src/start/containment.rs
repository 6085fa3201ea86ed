//! The containment of an agent at its start: the boxes that it gets, why it does not start without them, and
//! the note of what was proved. How boxes are built and proved is [`crate::contain`]'s.

use std::path::{Path, PathBuf};

use kage_core::contain::Containment;
use kage_core::network::NetworkPolicy;

use super::{Ports, RunError};
use crate::config::Config;
use crate::contain::{AskedTier, BoxParts, Boxes, ContainSettings};
use crate::identity::state::Paths;
use crate::ports::Blocking;
use crate::process::AgentEnvironment;

/// Notes for `kage doctor` what was proved. Nothing else depends on it.
pub(super) fn record(contained: &Containment, path: PathBuf) {
    let text = serde_json::to_vec(contained).map_err(std::io::Error::other);
    if let Err(error) = text.and_then(|text| std::fs::write(&path, text)) {
        tracing::warn!(%error, path = %path.display(), "the containment is not noted");
    }
}

/// What the last start of the agent with this state directory proved; `None` when it never started.
#[must_use]
pub fn contained_at_last(state: &Path) -> Option<Containment> {
    let text = std::fs::read(Paths::at(state).containment()).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The boxes for programs: the best of what was asked for that holds here. Nothing of an attempt runs yet.
///
/// # Errors
/// When a tier was asked for by name and is not had.
pub(super) async fn boxes(config: &Config, ports: &Ports, paths: Paths) -> Result<Boxes, RunError> {
    let asked = config.contain.tier;
    if asked.candidates().is_empty() {
        return Ok(Boxes::none(""));
    }
    let within = paths.clone();
    let (settings, own) = (config.contain.clone(), paths.short_tmp().folder().to_owned());
    let looking = ports
        .blocking
        .run(move || opened(&settings, &[within.root().to_owned(), own]));
    if let Some((folder, hidden)) = looking.await.map_err(|_| RunError::Interrupted)? {
        return Err(RunError::Writable { folder, hidden });
    }
    let boxes = prove(config, ports, paths).await?;
    let proved = boxes.proved();
    enough(asked, proved)?;
    tracing::info!(tier = %proved.tier, short_of = proved.short_of, "programs are contained");
    Ok(boxes)
}

/// A folder to which programs may write and something hidden that it would open to them, or lies in.
fn opened(settings: &ContainSettings, own: &[PathBuf]) -> Option<(PathBuf, PathBuf)> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let hidden: Vec<_> = own.iter().chain(&settings.hidden).map(|path| real(path)).collect();
    settings.write.iter().find_map(|folder| {
        let there = real(folder);
        let mut touched = hidden.iter();
        let touched = touched.find(|hidden| hidden.starts_with(&there) || there.starts_with(hidden))?;
        Some((folder.clone(), touched.clone()))
    })
}

/// Nothing runs in a lower tier than the one that was asked for by name.
fn enough(asked: AskedTier, proved: &Containment) -> Result<(), RunError> {
    match asked.named() {
        Some(asked) if proved.tier < asked => Err(RunError::Containment {
            asked,
            short_of: proved.short_of.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

async fn prove(config: &Config, ports: &Ports, paths: Paths) -> Result<Boxes, RunError> {
    let (Blocking::Threads, Some(executable)) = (&ports.blocking, ports.runner.executable()) else {
        return Ok(Boxes::none(
            "programs have no warden here, which would build their boxes",
        ));
    };
    let (mut settings, executable) = (config.contain.clone(), executable.to_owned());
    let no_t2 = no_way_out(config, &ports.environment);
    if let Some(why) = &no_t2 {
        tracing::warn!(tier = "T2", why, "a tier of containment is not had here");
        match without_t2(settings) {
            Some(lower) => settings = lower,
            None => return Ok(Boxes::none(why.as_str())),
        }
    }
    let home = ports.environment.get("HOME").map(PathBuf::from);
    let proving = ports.blocking.run(move || {
        Boxes::prove(&BoxParts {
            state: paths.root(),
            own: &[paths.short_tmp().folder().to_owned()],
            settings: &settings,
            home,
            executable: &executable,
        })
    });
    let boxes = proving.await.map_err(|_| RunError::Interrupted)?;
    Ok(match no_t2 {
        Some(why) => boxes.and_short_of(&why),
        None => boxes,
    })
}

/// The same without T2; `None`: nothing else was asked for.
fn without_t2(settings: ContainSettings) -> Option<ContainSettings> {
    match settings.tier {
        AskedTier::T2 => None,
        AskedTier::Best => Some(ContainSettings {
            tier: AskedTier::T1,
            ..settings
        }),
        AskedTier::T0 | AskedTier::Usual | AskedTier::T1 => Some(settings),
    }
}

/// Why boxes of T2 would have no network where they should have one: every attempt would fail.
fn no_way_out(config: &Config, environment: &AgentEnvironment) -> Option<String> {
    let may_be_t2 = matches!(config.contain.tier, AskedTier::T2 | AskedTier::Best);
    let network = &config.network;
    let needs_door = [network.sessions, network.verify].contains(&NetworkPolicy::Gateway);
    if !may_be_t2 || !needs_door {
        return None;
    }
    upstream_problem(environment).map(|problem| {
        format!("T2: {problem}; change the variable, or set [network] sessions and verify to \"open\" or \"none\"")
    })
}

#[cfg(target_os = "linux")]
fn upstream_problem(environment: &AgentEnvironment) -> Option<String> {
    let upstream = crate::door::Upstream::of(environment);
    upstream.err().map(|error| error.to_string())
}

/// There is no T2, and so no door.
#[cfg(not(target_os = "linux"))]
fn upstream_problem(_environment: &AgentEnvironment) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use kage_core::contain::Tier;

    use super::*;

    #[test]
    fn an_agent_starts_in_no_lower_tier_than_the_one_named() {
        let proved = |tier| Containment {
            tier,
            short_of: "bubblewrap is not installed".to_owned(),
        };
        for (asked, has, starts) in [
            (AskedTier::T2, Tier::T2, true),
            (AskedTier::T2, Tier::T1, false),
            (AskedTier::T2, Tier::T0, false),
            (AskedTier::T1, Tier::T1, true),
            (AskedTier::T1, Tier::T0, false),
            (AskedTier::Usual, Tier::T0, true),
            (AskedTier::Usual, Tier::T1, true),
            (AskedTier::Best, Tier::T0, true),
            (AskedTier::Best, Tier::T1, true),
            (AskedTier::T0, Tier::T0, true),
        ] {
            let enough = enough(asked, &proved(has));
            assert_eq!(enough.is_ok(), starts, "{asked:?} {has}");
            if let Err(error) = enough {
                let said = error.to_string();
                assert!(error.is_usage(), "{said}");
                assert!(
                    said.contains("bubblewrap is not installed") && said.contains("\"best\""),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn a_folder_that_programs_may_write_opens_nothing_that_is_hidden() {
        let place = tempfile::tempdir().unwrap();
        let place = std::fs::canonicalize(place.path()).unwrap();
        let at = |path: &str| place.join(path);
        std::fs::create_dir_all(at("state/agent")).unwrap();
        std::fs::create_dir_all(at("cache")).unwrap();
        std::os::unix::fs::symlink(at("state"), at("link")).unwrap();
        let opens = |write: &str| {
            let settings = ContainSettings {
                write: vec![at(write)],
                hidden: vec![at("keys/key")],
                ..ContainSettings::default()
            };
            opened(&settings, &[at("state/agent")]).map(|(_, hidden)| hidden)
        };
        let state = Some(at("state/agent"));
        for (write, opened) in [
            ("cache", None),
            ("absent", None),
            ("state/agentless", None),
            ("", state.clone()),
            ("state", state.clone()),
            ("state/agent", state.clone()),
            ("state/agent/mirrors", state.clone()),
            ("link", state),
            ("keys", Some(at("keys/key"))),
        ] {
            assert_eq!(opens(write), opened, "{write}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_proxy_that_no_door_can_use_is_why_there_is_no_t2() {
        let environment = |proxy| AgentEnvironment::from_iter([("ALL_PROXY", proxy)]);
        assert_eq!(upstream_problem(&environment("http://proxy:3128")), None);
        let why = upstream_problem(&environment("socks5h://proxy:1080")).unwrap();
        assert!(why.contains("ALL_PROXY"), "{why}");
        let asked = |tier| {
            let settings = ContainSettings {
                tier,
                ..ContainSettings::default()
            };
            without_t2(settings).map(|lower| lower.tier)
        };
        assert_eq!(asked(AskedTier::Best), Some(AskedTier::T1));
        assert_eq!(asked(AskedTier::T2), None);
        assert_eq!(Boxes::none("b").and_short_of("a").proved().short_of, "a; b");
    }
}
