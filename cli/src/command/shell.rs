//! `kage completions` and `kage man`: what shells and `man` read, made of the flags themselves.

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Cli, Completions, Man, Shell};
use crate::exit::Exit;
use crate::output::{Output, note};

pub(super) fn completions(out: &Output, args: &Completions) -> anyhow::Result<Exit> {
    out.unchanged(&script(args.shell))?;
    Ok(Exit::Done)
}

fn script(shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kage", &mut script);
    script
}

pub(super) fn man(args: &Man) -> anyhow::Result<Exit> {
    std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder))
        .with_context(|| format!("cannot write man pages into {}", args.folder.display()))?;
    note(&format!("man pages are in {}", args.folder.display()));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn shells_can_read_their_completions() {
        for (shell, program) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
            let script = script(shell);
            let text = String::from_utf8(script.clone()).unwrap();
            for word in ["compare", "--with", "watch"] {
                assert!(text.contains(word.trim_start_matches('-')), "{program}: {word}");
            }
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("kage");
            std::fs::write(&file, script).unwrap();
            match Command::new(program).arg("-n").arg(&file).output() {
                Ok(read) => assert!(read.status.success(), "{program}: {read:?}"),
                Err(_) => eprintln!("SKIPPED: {program} is not installed"),
            }
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let args = Man {
            folder: folder.path().join("man1"),
        };
        assert_eq!(man(&args).unwrap(), Exit::Done);
        let page = |name: &str| std::fs::read_to_string(args.folder.join(name)).unwrap();
        assert!(page("kage.1").contains("kage"));
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(page(&format!("kage-{name}.1")).contains(".SH NAME"), "{name}");
        }
    }
}
