//! What can go wrong on this machine, said so that the reader knows what to do.

use std::path::{Path, PathBuf};

/// Why a step on this machine failed. The text of each is complete: causes are in it, not behind it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, folder or socket operation.
    #[error("cannot {action} {}: {cause}", path.display())]
    File {
        /// Verb: `read`, `write`, `create` …
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A program that must be installed is not.
    #[error("{program} is needed and was not found on PATH: {hint}")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// Where it comes from, and what it is for.
        hint: &'static str,
    },
    /// A program is installed in a version that does not do.
    #[error("{program} {found} does not do: {wanted}")]
    WrongVersion {
        /// Its name.
        program: String,
        /// The version found.
        found: String,
        /// What would do.
        wanted: String,
    },
    /// A program ran and failed.
    #[error("{command} failed ({status})\n{output}")]
    Command {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// A server of the control plane ended.
    #[error("{process} ended ({exit}); the end of {}:\n{tail}", log.display())]
    ProcessEnded {
        /// Its name.
        process: String,
        /// How it ended.
        exit: String,
        /// Its log.
        log: PathBuf,
        /// Last lines of the log.
        tail: String,
    },
    /// A server did not become ready in time.
    #[error("{process} was not ready after {seconds} s ({last}); the end of {}:\n{tail}", log.display())]
    NotReady {
        /// Its name.
        process: String,
        /// How long was waited.
        seconds: u64,
        /// Last answer to the readiness check.
        last: String,
        /// Its log.
        log: PathBuf,
        /// Last lines of the log.
        tail: String,
    },
    /// Something did not come true in time.
    #[error("waited {seconds} s for {what}; last seen: {last}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long was waited.
        seconds: u64,
        /// What was seen last.
        last: String,
    },
    /// Another run owns the state folder.
    #[error("{} is in use by another run (process {owner})", state.display())]
    InUse {
        /// The state folder.
        state: PathBuf,
        /// Its process, as far as it is known.
        owner: String,
    },
    /// Processes of an earlier run did not end.
    #[error("still running after SIGKILL: {0}")]
    Leftover(String),
    /// No port is free.
    #[error("no free port between {first} and {last} on 127.0.0.1")]
    NoPort {
        /// First port tried.
        first: u16,
        /// Last port tried.
        last: u16,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}: {cause}")]
    Certificate {
        /// Whose.
        subject: String,
        /// Why.
        cause: rcgen::Error,
    },
    /// A fleet file says something that cannot be.
    #[error("fleet {}: {reason}", path.display())]
    Fleet {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no such node in the fleet.
    #[error("no node {0:?} in the fleet")]
    NoNode(String),
    /// There is no such running container.
    #[error("container {container} of pod {namespace}/{pod} is not running")]
    NoContainer {
        /// Namespace of the pod.
        namespace: String,
        /// Its name.
        pod: String,
        /// The container.
        container: String,
    },
    /// A request to the API server failed.
    #[error("cannot {action}: {cause}")]
    Kube {
        /// What was tried, with the object's name.
        action: String,
        /// Why it failed.
        cause: Box<kube::Error>,
    },
    /// The kubeconfig that we wrote does not work.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A part of the checkout is missing.
    #[error("{} is missing: {hint}", path.display())]
    MissingFile {
        /// What.
        path: PathBuf,
        /// Where it should come from.
        hint: &'static str,
    },
    /// A value does not have the shape that was expected.
    #[error("{what}: {reason}")]
    Malformed {
        /// Of what.
        what: String,
        /// Why.
        reason: String,
    },
}

/// Short form.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err` after a file operation.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Self::File { action, path, cause }
    }

    /// For `map_err` after a request to the API server.
    pub fn kube(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |cause| Self::Kube {
            action,
            cause: Box::new(cause),
        }
    }

    /// For `map_err` after parsing.
    pub fn malformed<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| Self::Malformed {
            what,
            reason: error.to_string(),
        }
    }
}
