//! How a Job ended. Pure.

use serde_json::Value;

use crate::kinds::children::Child;

/// Why a Job failed, in the words of its condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// One word, such as `BackoffLimitExceeded`.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// How a Job ended: whatever made it fail, its condition says so. `None`: it has not.
pub fn outcome(job: &Child) -> Option<Result<(), Failure>> {
    let status = &job.object["status"];
    let conditions = status["conditions"].as_array();
    let condition = |type_: &str| {
        let mut all = conditions.into_iter().flatten();
        all.find(|c| c["type"] == type_ && c["status"] == "True")
    };
    if let Some(failed) = condition("Failed") {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        return Some(Err(Failure {
            reason: failed["reason"].as_str().unwrap_or("no reason given").to_owned(),
            message: text(&failed["message"]),
        }));
    }
    let succeeded = status["succeeded"].as_i64().unwrap_or(0) > 0;
    (succeeded || condition("Complete").is_some()).then_some(Ok(()))
}
