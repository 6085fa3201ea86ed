//! What can be typed, what it says of itself, and that the documents type only what can be.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory as _;
use kage_agent::adapters::AdapterConfig;
use kage_agent::process::{AgentEnvironment, Runner};

use super::*;

#[test]
fn a_prompt_may_begin_with_a_dash() {
    let read = |words: &[&str]| {
        let words = std::iter::once("kage").chain(words.iter().copied());
        parse(words.map(OsString::from).collect())
    };
    let prompt = |words: &[&str]| match read(words).unwrap().command {
        Command::Run(run) => (run.prompt.unwrap(), run.options.with, run.detach),
        other => panic!("{other:?}"),
    };
    let with = vec!["codex".to_owned()];
    let expected = ("-d is the flag to mend".to_owned(), with, true);
    assert_eq!(
        prompt(&["run", "-d is the flag to mend", "--with", "codex", "-d"]),
        expected
    );
    assert_eq!(
        prompt(&["run", "-d", "--with", "codex", "--", "-d is the flag to mend"]),
        expected
    );
    let dashes = "--help should say\nmore";
    assert_eq!(prompt(&["run", "--with", "codex", dashes]).0, dashes);
    assert!(
        matches!(read(&["send", "one", "- mend it"]).unwrap().command, Command::Send(send) if send.prompt.as_deref() == Some("- mend it"))
    );
    for wrong in [
        &["run", "--nonsense"][..],
        &["run", "x", "--nonsense=a b"],
        &["ls", "-x y"],
    ] {
        let error = read(wrong).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::UnknownArgument, "{wrong:?}");
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_short_help_of_run_is_short_and_the_long_one_has_every_flag() {
    let mut command = Cli::command();
    command.build();
    let run = command.find_subcommand_mut("run").unwrap();
    let flags = |help: String| -> Vec<String> {
        // Further lines about a flag stand further in.
        let begins = |line: &&str| line.trim_start().starts_with('-') && line.find('-') <= Some(6);
        help.lines().filter(begins).map(str::to_owned).collect()
    };
    let short = flags(run.render_help().to_string());
    assert!((5..=12).contains(&short.len()), "{short:#?}");
    let long = run.render_long_help().to_string();
    let all = run.get_arguments().filter_map(clap::Arg::get_long);
    for flag in all {
        assert!(long.contains(&format!("--{flag}")), "{flag}");
    }
    for heading in ["Who works:", "How results are checked:", "Limits:"] {
        assert!(long.contains(heading), "{heading}");
    }
}

/// Every command with its commands, by the words that are typed.
fn all(command: &clap::Command, before: &str) -> Vec<String> {
    let each = command.get_subcommands().map(|command| {
        let name = format!("{before}{}", command.get_name());
        let more = all(command, &format!("{name} "));
        std::iter::once(name).chain(more)
    });
    each.flatten().collect()
}

#[test]
fn help_says_what_every_command_is_for_at_every_width() {
    let names = all(&Cli::command(), "");
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        let at = |width: usize| {
            let mut command = Cli::command().term_width(width);
            command.build();
            let mut found = &mut command;
            for word in name.split(' ') {
                found = found.find_subcommand_mut(word).unwrap();
            }
            format!("--- {width} columns\n{}\n", found.render_long_help())
        };
        let help: String = [40, 80, 120].map(at).concat();
        insta::assert_snapshot!(format!("help_{}", name.replace(' ', "_")), help);
    }
}

/// The words of each `kage` command in the shell blocks of a document, as a shell reads them.
fn commands(document: &str) -> Vec<Vec<String>> {
    let blocks = document
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let text: String = blocks.collect::<String>().replace("\\\n", " ");
    // At the beginning of a line, or behind a variable that is set for it.
    let lines = text.lines().filter_map(|line| {
        let mut found = line.match_indices("kage ");
        let (at, _) =
            found.find(|(at, _)| *at == 0 || line[..*at].rsplit(' ').nth(1).is_some_and(|word| word.contains('=')))?;
        Some(&line[at..])
    });
    let words = |line: &str| {
        let script = format!("set -f; printf '%s\\n' {line}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    };
    lines.map(words).collect()
}

/// Every recipe is for an adapter that there is, and every adapter that comes with the program has one.
#[test]
fn there_is_a_recipe_for_every_adapter() {
    let environment = AgentEnvironment::new(BTreeMap::new());
    let config = AdapterConfig::new(environment, Runner::default());
    let described = kage_agent::adapters::described(&config).unwrap();
    let there_are: BTreeSet<String> = described.iter().map(|adapter| adapter.name.to_string()).collect();
    let mut recipes = BTreeSet::new();
    for command in commands(include_str!("../../../docs/adapters.md")) {
        for words in command.windows(2).filter(|words| words[0] == "--with") {
            let name = words[1].split(':').next().unwrap();
            recipes.insert(name.to_owned());
        }
    }
    assert_eq!(recipes, there_are);
}

#[test]
fn every_command_of_the_documents_can_be_typed() {
    let mut found = 0;
    for document in [
        include_str!("../../../README.md"),
        include_str!("../../../docs/adapters.md"),
        include_str!("../../../docs/machines.md"),
        include_str!("../../../docs/operations.md"),
    ] {
        for command in commands(document) {
            let parsed = Cli::try_parse_from(&command);
            assert!(parsed.is_ok(), "{command:?}: {}", parsed.unwrap_err());
            found += 1;
        }
    }
    assert!(found >= 10, "only {found} commands were found");
}
