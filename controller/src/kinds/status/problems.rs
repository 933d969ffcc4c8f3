//! What is wrong with a spec: collected, so that one look at the object shows all of it.

use std::fmt;

use berth_crds::conditions::{Reason, shortened};

/// Longest path and text of one problem, in bytes: an endless value must not hide the problems after it.
const LONGEST: usize = 512;

/// One thing that cannot work as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Reason that it gives to the condition.
    pub reason: Reason,
    /// Where: a field path from the object's root.
    pub path: String,
    /// What is wrong, and what to do.
    pub text: String,
}

/// All that was found, in the order in which it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// A field cannot work: what is wrong with it, and what to do.
    pub fn invalid(&mut self, path: impl Into<String>, wrong: impl fmt::Display, fix: impl fmt::Display) {
        self.push(Reason::InvalidSpec, path, wrong, fix);
    }

    /// The same with a reason of its own.
    pub fn push(&mut self, reason: Reason, path: impl Into<String>, wrong: impl fmt::Display, fix: impl fmt::Display) {
        self.0.push(Problem {
            reason,
            path: shortened(path.into(), LONGEST),
            text: format!("{}; {fix}", shortened(wrong.to_string(), LONGEST)),
        });
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was found.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// The condition's reason: that of the first problem which has a more telling one than `InvalidSpec`.
    pub fn reason(&self) -> Reason {
        self.0
            .iter()
            .map(|p| p.reason)
            .find(|r| *r != Reason::InvalidSpec)
            .unwrap_or(Reason::InvalidSpec)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { " | " };
            write!(f, "{separator}{}: {}", problem.path, problem.text)?;
        }
        Ok(())
    }
}

/// What reading a spec turned up beside the model of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What cannot work.
    pub problems: Problems,
    /// What is accepted and has no effect, as `path: why`.
    pub ignored: Vec<String>,
}

impl Findings {
    /// See [`Problems::invalid`].
    pub fn invalid(&mut self, path: impl Into<String>, wrong: impl fmt::Display, fix: impl fmt::Display) {
        self.problems.invalid(path, wrong, fix);
    }

    /// A field has no effect, and why.
    pub fn ignored(&mut self, path: impl fmt::Display, why: impl fmt::Display) {
        self.ignored.push(shortened(format!("{path}: {why}"), LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_reason_wins_and_everything_is_listed() {
        let mut problems = Problems::default();
        problems.invalid("spec.a", "is bad", "set it");
        assert_eq!(problems.reason(), Reason::InvalidSpec);
        problems.push(Reason::UnsupportedEngine, "spec.b", "is unknown", "use another");
        assert_eq!(problems.reason(), Reason::UnsupportedEngine);
        assert_eq!(
            problems.to_string(),
            "spec.a: is bad; set it | spec.b: is unknown; use another"
        );
    }
}
