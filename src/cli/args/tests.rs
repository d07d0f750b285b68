//! What is read of the command line.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn everything_that_is_named_on_the_command_line_has_its_help() {
    let mut silent = Vec::new();
    let mut all = vec![(String::from("fusebox"), Cli::command())];
    while let Some((name, command)) = all.pop() {
        if command.get_about().is_none() {
            silent.push(name.clone());
        }
        for argument in command.get_arguments() {
            let is_silent = argument.get_help().is_none()
                && !matches!(argument.get_id().as_str(), "help" | "version");
            let words = argument.get_possible_values();
            // `--priority low` speaks for itself; what a word does is another matter.
            let silent_word =
                name == "fusebox breaker" && words.iter().any(|it| it.get_help().is_none());
            if is_silent || silent_word {
                silent.push(format!("{name} {}", argument.get_id()));
            }
        }
        let below = command.get_subcommands();
        all.extend(below.map(|it| (format!("{name} {}", it.get_name()), it.clone())));
    }
    assert_eq!(silent, [""; 0]);
}

#[test]
fn commands_are_read() {
    let Command::Call(call) = parse("fusebox call redis --deadline 2s --json -- SET k --x").command
    else {
        panic!("a call")
    };
    assert_eq!(call.args, ["SET", "k", "--x"]);
    assert_eq!(call.deadline, Some(Duration::from_secs(2)));
    assert!(call.output.json);
    let Command::Call(call) = parse("fusebox call redis GET k").command else { panic!("a call") };
    assert_eq!(call.args, ["GET", "k"]);
    let Command::Breaker { order, lasting, .. } =
        parse("fusebox breaker redis force-open --reason x --for 10m").command
    else {
        panic!("a breaker's order")
    };
    assert_eq!((order, lasting), (BreakerOrder::ForceOpen, Some(Duration::from_secs(600))));
    let cli = parse("fusebox queue ls --dead --backend b --socket /s");
    assert_eq!(cli.socket, Some("/s".into()));
    let Command::Queue(queue) = cli.command else { panic!("a queue's command") };
    assert_eq!(queue.backend.as_deref(), Some("b"));
    for line in [
        "fusebox run --state-dir /s --http 127.0.0.1:1 --log-format json",
        "fusebox demo --seconds 3 --seed 4",
        "fusebox check --startup --json",
        "fusebox status --exit-code --json",
        "fusebox status --watch",
        "fusebox status --watch --json",
        "fusebox status --watch --exit-code",
        "fusebox explain redis --json",
        "fusebox events --follow --backend redis --json",
        "fusebox events --since 2h --follow",
        "fusebox events --since 2026-11-23T16:00:00Z --limit 5",
        "fusebox recover",
        "fusebox recover redis",
        "fusebox offline redis",
        "fusebox backend accept-retarget redis",
        "fusebox backend accept-clone",
        "fusebox backend accept-loss redis",
        "fusebox queue show 01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "fusebox queue replay redis",
        "fusebox queue requeue 01ARZ3NDEKTSV4RRFFQ69G5FAV --force",
        "fusebox queue requeue 01ARZ3NDEKTSV4RRFFQ69G5FAV --not-applied --force",
        "fusebox queue requeue --from calls.jsonl --force",
        "fusebox queue export --state-dir /s",
        "fusebox queue export /d --backend redis",
        "fusebox queue check --state-dir /s --json",
        "fusebox queue repair /d",
        "fusebox queue drain --state-dir /s",
        "fusebox queue drain --state-dir /s --patience 5s --accept-clone --accept-retarget --json",
        "fusebox queue import calls.jsonl",
        "fusebox queue import - --force --retarget --backend redis --json",
        "fusebox chaos ls",
        "fusebox chaos ls redis --json",
        "fusebox chaos set redis --kind latency --rate 0.05 --latency 200ms --jitter 50ms --for 10m",
        "fusebox chaos set redis --file faults.json --force --seed 42 --no-count",
        "fusebox chaos clear redis",
        "fusebox config show",
        "fusebox config reload",
        "fusebox log-level",
        "fusebox log-level debug,fusebox=trace --for 10m",
        "fusebox log-level --usual",
        "fusebox completions bash",
        "fusebox man",
    ] {
        parse(line);
    }
}

#[test]
fn nonsense_is_refused() {
    for line in [
        "fusebox",
        "fusebox call redis",
        "fusebox breaker redis ajar",
        "fusebox log-level --for 10m",
        "fusebox chaos set redis --kind error",
        "fusebox chaos set redis --kind error --rate 0.1 --file f",
        "fusebox chaos clear",
        "fusebox queue show nonsense",
        "fusebox queue requeue --from calls.jsonl --not-applied",
        "fusebox queue import",
        "fusebox queue drain --patience soon",
        "fusebox call redis --deadline soon -- GET k",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}
