//! What a check says.

use crate::health::{Effect, Reason};

/// What a check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong.
    Passed,
    /// The part or the driver does not have the reading.
    NotSupported,
    /// The reading exists, and cannot be had at the moment: neither well nor ill.
    Unknown,
    /// Worth watching.
    Suspect,
    /// Not to be handed out.
    Unhealthy,
}

/// One check of one GPU, or of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name, as the documentation has it.
    pub check: &'static str,
    /// What it says.
    pub outcome: Outcome,
    /// Why, where it is not passed.
    pub reason: Option<Reason>,
    /// What was seen and what to do. Free of anything that changes by itself.
    pub message: String,
    /// The reading itself, for people; empty where there is none or the message has it.
    pub reading: String,
}

impl Row {
    pub(super) fn new(check: &'static str, outcome: Outcome) -> Self {
        Self {
            check,
            outcome,
            reason: None,
            message: String::new(),
            reading: String::new(),
        }
    }

    pub(super) fn passed(check: &'static str, reading: impl Into<String>) -> Self {
        Self {
            reading: reading.into(),
            ..Self::new(check, Outcome::Passed)
        }
    }

    pub(super) fn unknown(check: &'static str, why: impl Into<String>) -> Self {
        Self {
            message: why.into(),
            ..Self::new(check, Outcome::Unknown)
        }
    }

    pub(super) fn suspect(check: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self::found(check, Outcome::Suspect, reason, message)
    }

    pub(super) fn unhealthy(check: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self::found(check, Outcome::Unhealthy, reason, message)
    }

    fn found(check: &'static str, outcome: Outcome, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            message: message.into(),
            ..Self::new(check, outcome)
        }
    }

    /// Effect on the GPU, where there is one.
    pub fn effect(&self) -> Option<Effect> {
        match self.outcome {
            Outcome::Passed | Outcome::NotSupported | Outcome::Unknown => None,
            Outcome::Suspect => Some(Effect::Suspect),
            Outcome::Unhealthy => Some(Effect::Unhealthy),
        }
    }
}
