//! Every target on what is kept of it, on thousands of changes of that, and on inputs that are far too large.
//! `BERTH_FUZZ_ROUNDS` is how many changes of each input; `BERTH_FUZZ_SEED` makes them other ones.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use berth_fuzz_targets::corpus::{self, Random, mutated};
use berth_fuzz_targets::{Run, TARGETS};

/// The corpus stays small enough to be in the repository.
const LARGEST_CORPUS: usize = 200_000;
/// Far above any input that is real.
const HUGE: usize = 256 * 1024;
/// Work that grows with the size takes seconds at most on such an input, work that grows with its square many minutes.
const PATIENCE: Duration = Duration::from_secs(300);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// Runs one input; where it panics, the input is part of the message.
fn run(target: &str, run: Run, name: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
        let file = std::env::temp_dir().join(format!("berth-{target}-failed"));
        std::fs::write(&file, input).unwrap();
        panic!("{target}, {name}: failed on {}", file.display());
    }
}

#[test]
fn every_input_that_is_kept() {
    let mut all = 0;
    for (target, body) in TARGETS {
        let inputs = corpus::inputs(target).unwrap();
        assert!(inputs.len() >= 3, "{target} has {} inputs", inputs.len());
        run(target, body, "nothing", b"");
        for (name, input) in inputs {
            all += input.len();
            run(target, body, &name, &input);
        }
    }
    assert!(all < LARGEST_CORPUS, "{all} bytes");
}

#[test]
fn changes_of_them() {
    let (rounds, seed) = (number("BERTH_FUZZ_ROUNDS", 30), number("BERTH_FUZZ_SEED", 1));
    for (target, body) in TARGETS {
        let inputs = corpus::inputs(target).unwrap();
        let mut random = Random::new(seed);
        for (name, input) in &inputs {
            for round in 0..rounds {
                let (_, other) = &inputs[random.below(inputs.len())];
                let changed = mutated(input, other, &mut random);
                run(target, body, &format!("{name}, seed {seed}, round {round}"), &changed);
            }
        }
    }
}

/// The longest input of a target again and again, and one byte of it again and again.
fn grown(input: &[u8]) -> [Vec<u8>; 3] {
    let one = |byte| vec![byte; HUGE];
    let repeated = input
        .iter()
        .copied()
        .cycle()
        .take(HUGE.min(input.len() * HUGE))
        .collect();
    [repeated, one(b'-'), one(b'[')]
}

#[test]
fn work_does_not_grow_faster_than_the_input() {
    for (target, body) in TARGETS {
        let longest = corpus::inputs(target)
            .unwrap()
            .into_iter()
            .max_by_key(|(_, input)| input.len());
        let (_, input) = longest.unwrap();
        for huge in grown(&input) {
            let (done, wait) = mpsc::channel();
            let started = Instant::now();
            std::thread::spawn(move || {
                body(&huge);
                let _ = done.send(());
            });
            wait.recv_timeout(PATIENCE)
                .unwrap_or_else(|why| panic!("{target}: {why}"));
            eprintln!("{target}: {:?}", started.elapsed());
        }
    }
}

#[test]
fn each_target_has_its_program() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for (target, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        let program = std::fs::read_to_string(folder.join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(program.contains(&format!("{target}::run")), "{target}");
    }
    let programs = std::fs::read_dir(folder.join("fuzz_targets")).unwrap().count();
    assert_eq!(programs, TARGETS.len());
}
