//! What can go wrong while an object is served, and what follows from it.

use std::time::Duration;

use jiff::Timestamp;

/// Decides when an object is looked at again, and the metric label of the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Passes by itself: try again soon.
    Transient,
    /// Waits for somebody else's change that is not watched: try again later.
    Blocked,
    /// Nothing that is known helps: look again now and then.
    Terminal,
}

/// Failures of the API server in a row after which a status tells of them: fewer are no news.
pub const TRANSIENT_TRIES: u32 = 3;

/// A failure to bring one child about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not answer in time.
    #[error("{verb} {kind} {namespace}/{name}: no answer from the API server within {seconds} s")]
    Timeout {
        verb: &'static str,
        kind: &'static str,
        namespace: String,
        name: String,
        seconds: u64,
    },
    /// The API server refused, or could not be reached.
    #[error("{verb} {kind} {namespace}/{name}: {}", answer(source))]
    Api {
        verb: &'static str,
        kind: &'static str,
        namespace: String,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of the child's name belongs to somebody else.
    #[error("{kind} {namespace}/{name} exists and belongs to {holder}; rename one of the two, or delete it")]
    NameTaken {
        kind: &'static str,
        namespace: String,
        name: String,
        holder: String,
    },
    /// The operator that made the child before Berth goes on writing it.
    #[error(
        "{operator} still writes {kind} {namespace}/{name}, so Berth leaves it alone; scale that operator to 0 replicas, and Berth goes on by itself"
    )]
    AnotherOperator {
        kind: &'static str,
        namespace: String,
        name: String,
        operator: String,
        /// Since when it has been quiet.
        since: Timestamp,
        /// How much longer it has to be.
        remaining: Duration,
    },
    /// Somebody changes a field of a child back whenever Berth has set it, or deletes the child.
    #[error(
        "something in this cluster keeps {deeds} {kind} {namespace}/{name}, which this object asks for, so Berth sets it back only every \
         {minutes} min now; find who does it (kubectl get -o yaml --show-managed-fields, or the API server's audit log), and stop it or change \
         this object"
    )]
    KeepsChanging {
        kind: &'static str,
        namespace: String,
        name: String,
        /// What is done, with the paths in the child: "changing spec.ports of".
        deeds: String,
        /// Time between two repairs.
        minutes: u64,
        /// How much longer the child is left as it is.
        remaining: Duration,
    },
    /// The child of an earlier object of the owner's name has not been deleted yet.
    #[error("{kind} {namespace}/{name} of an earlier object of the same name is still being deleted")]
    NotYetDeleted {
        kind: &'static str,
        namespace: String,
        name: String,
    },
}

/// What the server said, without what kube adds to it.
fn answer(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

impl Error {
    /// When the next try makes sense, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::AnotherOperator { remaining, .. } | Self::KeepsChanging { remaining, .. } => Some(*remaining),
            Self::Timeout { .. } | Self::Api { .. } | Self::NameTaken { .. } | Self::NotYetDeleted { .. } => None,
        }
    }

    /// What follows from it.
    pub fn class(&self) -> Class {
        match self {
            Self::Timeout { .. } | Self::NotYetDeleted { .. } => Class::Transient,
            Self::NameTaken { .. } | Self::AnotherOperator { .. } | Self::KeepsChanging { .. } => Class::Blocked,
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    // 401 and 429 pass; 409 is a stale picture, gone with the next event.
                    401 | 408 | 409 | 429 | 500..=599 => Class::Transient,
                    // 422 and 400 are answers about what we sent, which comes from the object, or from an admission rule that may change.
                    _ => Class::Blocked,
                },
                // Building or reading a body fails the same way every time.
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Class::Terminal,
                _ => Class::Transient,
            },
        }
    }
}

/// First and longest wait of a class.
fn waits(class: Class) -> (Duration, Duration) {
    let seconds = Duration::from_secs;
    match class {
        Class::Transient => (Duration::from_millis(500), seconds(120)),
        Class::Blocked => (seconds(15), seconds(600)),
        Class::Terminal => (seconds(1800), seconds(1800)),
    }
}

/// How long to wait before the next try after `attempts` failures in a row; `jitter` in 0..1 spreads objects that failed together over the
/// upper half of the wait.
pub fn wait(class: Class, attempts: u32, jitter: f64) -> Duration {
    let (first, longest) = waits(class);
    let doubled = first.saturating_mul(
        1_u32
            .checked_shl(attempts.saturating_sub(1).min(20))
            .unwrap_or(u32::MAX),
    );
    doubled.min(longest).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16) -> Error {
        let status = kube::core::Status {
            code,
            message: "no".into(),
            ..Default::default()
        };
        Error::Api {
            verb: "apply",
            kind: "Service",
            namespace: "a".into(),
            name: "b".into(),
            source: Box::new(kube::Error::Api(Box::new(status))),
        }
    }

    #[test]
    fn classes_follow_the_answer() {
        for (code, class) in [
            (409, Class::Transient),
            (429, Class::Transient),
            (500, Class::Transient),
            (422, Class::Blocked),
            (403, Class::Blocked),
            (404, Class::Blocked),
        ] {
            assert_eq!(api(code).class(), class, "{code}");
        }
        assert_eq!(api(422).to_string(), "apply Service a/b: no");
    }

    #[test]
    fn waits_double_up_to_a_limit_and_are_spread() {
        let at = |n| wait(Class::Transient, n, 1.0);
        assert_eq!(at(1), Duration::from_millis(500));
        assert_eq!(at(3), Duration::from_secs(2));
        assert_eq!(at(40), Duration::from_secs(120));
        assert_eq!(wait(Class::Transient, 1, 0.0), Duration::from_millis(250));
    }
}
