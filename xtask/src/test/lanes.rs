//! Runs test programs two at a time: each mostly waits for its own cluster, and together they take little more than half the time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Programs that run at the same time.
const LANES: usize = 2;
/// Those that take a minute or more begin first, so that none is left running alone at the end.
const LONG: [&str; 6] = [
    "aideployment",
    "faults",
    "migration",
    "labeler_scale",
    "hardware",
    "modeldeployment",
];

/// Lines of a program's output that are shown again where it does not say which test failed.
const TAIL: usize = 30;

/// A test program that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Of its test target.
    pub name: String,
    /// The file to run.
    pub path: PathBuf,
    /// Folder of its package, where cargo would run it.
    pub folder: PathBuf,
}

/// The test programs that cargo's messages (`--message-format=json`) tell of, in the order in which they begin. None is an error: the
/// messages are not what they were, and no test would run.
pub fn programs(messages: &str) -> anyhow::Result<Vec<Program>> {
    let mut found = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo's messages cannot be read")?;
        let text = |path: &str| message.pointer(path).and_then(Value::as_str);
        let is_test = message["profile"]["test"] == true && message["target"]["kind"] == serde_json::json!(["test"]);
        if let (true, Some(name), Some(path), Some(manifest)) = (
            is_test,
            text("/target/name"),
            text("/executable"),
            text("/manifest_path"),
        ) {
            found.push(Program {
                name: name.into(),
                path: path.into(),
                folder: Path::new(manifest).parent().map(PathBuf::from).unwrap_or_default(),
            });
        }
    }
    ensure!(!found.is_empty(), "cargo's messages tell of no test program");
    let place = |program: &Program| LONG.iter().position(|name| *name == program.name).unwrap_or(LONG.len());
    found.sort_by_key(place);
    Ok(found)
}

/// Runs them all, `with` what a command needs; the output of each is printed whole when it ends. Those that failed are the error, and what
/// they say of their failures is printed once more at the end, where whoever sees only the tail of a long log finds it.
pub fn run(programs: Vec<Program>, with: impl Fn(&mut Command) + Sync) -> anyhow::Result<()> {
    let waiting = Mutex::new(VecDeque::from(programs));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(program) = next else { return };
                    if let Err(error) = run_one(&program, &with) {
                        let entry = (program.name, format!("{error:#}"));
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.is_empty() {
        return Ok(());
    }
    for (_, said) in &failed {
        say!("\n── {said}");
    }
    let names: Vec<_> = failed.into_iter().map(|(name, _)| name).collect();
    bail!("failed: {}", names.join(", "));
}

fn run_one(program: &Program, with: &impl Fn(&mut Command)) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut command = Command::new(&program.path);
    command.current_dir(&program.folder).stdin(Stdio::null());
    with(&mut command);
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", program.path.display()))?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    say!(
        "\n── {} ({:.0} s)\n{stdout}{stderr}",
        program.name,
        started.elapsed().as_secs_f32()
    );
    if !output.status.success() {
        bail!("{}: {}\n{}", program.name, output.status, failures(&stdout, &stderr));
    }
    Ok(())
}

/// What a test program says of the tests that failed; without such a section, how its output ends.
fn failures<'a>(stdout: &'a str, stderr: &'a str) -> &'a str {
    match stdout.find("\nfailures:\n") {
        Some(start) => &stdout[start + 1..],
        None => {
            let output = if stderr.trim().is_empty() { stdout } else { stderr };
            let start = output.rmatch_indices('\n').nth(TAIL).map_or(0, |(at, _)| at + 1);
            &output[start..]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_cargo_s_messages_and_the_long_ones_begin() {
        let artifact = |kind: &str, name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":true}},"executable":{executable}}}"#
            )
        };
        let messages = [
            artifact("test", "smoke", r#""/w/target/smoke-1""#),
            "   Compiling something".to_owned(),
            artifact("lib", "berth_core", "null"),
            artifact("test", "faults", r#""/w/target/faults-1""#),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ]
        .join("\n");
        let found = programs(&messages).unwrap();
        let names: Vec<_> = found.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["faults", "smoke"]);
        assert_eq!(found[0].folder, Path::new("/w/tests"));
    }

    #[test]
    fn to_find_none_is_an_error() {
        let other = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"profile":{"test":true},"executable":null}"#;
        for messages in ["", other] {
            assert!(programs(messages).is_err(), "{messages}");
        }
    }

    #[test]
    fn failures_are_what_the_program_says_or_how_it_ends() {
        let said = "test a ... ok\n\nfailures:\n\n---- b ----\nwhy\n\nfailures:\n    b\n";
        assert_eq!(failures(said, "log"), &said[said.find("failures").unwrap()..]);
        let log: String = (0..TAIL + 5).map(|n| format!("{n}\n")).collect();
        let shown = failures("test a ... ok", &log);
        assert_eq!(shown.lines().count(), TAIL);
        assert!(shown.starts_with("5\n"), "{shown}");
        assert_eq!(failures("only this", ""), "only this");
    }

    #[test]
    fn all_run_and_those_that_fail_are_named() {
        let program = |name: &str| Program {
            name: name.into(),
            path: "/bin/sh".into(),
            folder: "/".into(),
        };
        let all = ["a", "b", "c"].map(program).to_vec();
        assert!(
            run(all.clone(), |command| {
                command.args(["-c", "exit 0"]);
            })
            .is_ok()
        );
        let said = run(all, |command| {
            command.args(["-c", "exit 1"]);
        })
        .unwrap_err()
        .to_string();
        assert!(["a", "b", "c"].iter().all(|name| said.contains(name)), "{said}");
    }
}
