//! The Lease on the API server.

use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Decision, LEASE_DURATION, LEASE_NAME, Observed, RENEW_DEADLINE, RENEW_EVERY, decide};
use berth_crds::names::managers;

/// Longest wait for one call on the Lease; two of them fit between two renewals and the deadline.
const CALL: Duration = Duration::from_secs(4);
/// Pause after a failed call.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for the release on the way out.
const RELEASE: Duration = Duration::from_secs(2);

/// Why this process may not lead any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else is the holder.
    #[error("Lease {LEASE_NAME} is now held by {holder:?}")]
    Taken {
        /// Who holds it.
        holder: String,
    },
    /// Nobody can tell who holds it.
    #[error("Lease {LEASE_NAME} could not be renewed for {} s", RENEW_DEADLINE.as_secs())]
    Deadline,
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("no answer within {} s", CALL.as_secs())]
    Timeout,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl CallError {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(s)) if s.is_conflict() || s.is_already_exists())
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(s)) if s.is_not_found())
    }
}

/// One process's part in the election.
pub struct Election {
    api: Api<Lease>,
    identity: String,
    /// What was last read or written, its resource version, and when this process saw it become so.
    seen: Option<(Observed, String, Instant)>,
    transitions: i32,
    held_since: Option<Timestamp>,
    /// When the last successful claim or renewal was sent.
    renewed: Instant,
}

impl Election {
    /// Takes part under `identity`.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            seen: None,
            transitions: 0,
            held_since: None,
            renewed: Instant::now(),
        }
    }

    /// Waits until this process holds the Lease; false: `stop` came first.
    pub async fn win(&mut self, stop: &CancellationToken) -> bool {
        // A hint only, so that a released Lease is taken at once; what counts is read anew each time.
        let hints = watcher::watch_object(self.api.clone(), LEASE_NAME).default_backoff();
        let mut hints = std::pin::pin!(hints);
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) if error.is_conflict() => {}
                Err(error) => tracing::warn!(%error, "Lease {LEASE_NAME} could not be read or claimed"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(jittered(RENEW_EVERY)) => {}
                _ = hints.next() => {}
            }
        }
    }

    /// Renews until the Lease is lost.
    pub async fn keep(&mut self) -> Lost {
        loop {
            let left = RENEW_DEADLINE.saturating_sub(self.renewed.elapsed());
            let pause = match tokio::time::timeout(left, self.renew()).await {
                Ok(Ok(())) => RENEW_EVERY,
                Ok(Err(RenewError::Lost(lost))) => return lost,
                Ok(Err(RenewError::Call(error))) => {
                    tracing::warn!(%error, "Lease {LEASE_NAME} was not renewed");
                    RETRY
                }
                Err(_) => return Lost::Deadline,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Empties the Lease so that a successor need not wait.
    pub async fn release(mut self) {
        if self.held_since.take().is_none() {
            return;
        }
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(micro_now().into()),
            ..LeaseSpec::default()
        };
        match tokio::time::timeout(RELEASE, self.write(spec)).await {
            Ok(Ok(())) => tracing::info!("Lease {LEASE_NAME} released"),
            Ok(Err(error)) => tracing::warn!(%error, "Lease {LEASE_NAME} was not released; it runs out by itself"),
            Err(_) => tracing::warn!("Lease {LEASE_NAME} was not released in time; it runs out by itself"),
        }
    }

    async fn attempt(&mut self) -> Result<bool, CallError> {
        self.observe().await?;
        match self.decision() {
            Decision::Claim => self.claim().await.map(|()| true),
            Decision::Renew => Ok(true),
            Decision::Standby => Ok(false),
        }
    }

    async fn renew(&mut self) -> Result<(), RenewError> {
        // A second try where the first one showed that somebody touched the Lease: a stray annotation, a deletion, or another holder.
        let mut tries_left = 1;
        loop {
            let call = match self.decision() {
                Decision::Renew => self.write_renewal().await,
                Decision::Claim => self.claim().await,
                Decision::Standby => {
                    let holder = self.seen.as_ref().map(|(o, ..)| o.holder.clone()).unwrap_or_default();
                    return Err(RenewError::Lost(Lost::Taken { holder }));
                }
            };
            match call {
                Ok(()) => return Ok(()),
                Err(error) if tries_left > 0 && (error.is_conflict() || error.is_not_found()) => {
                    tries_left -= 1;
                    self.observe().await.map_err(RenewError::Call)?;
                }
                Err(error) => return Err(RenewError::Call(error)),
            }
        }
    }

    async fn write_renewal(&mut self) -> Result<(), CallError> {
        let sent = Instant::now();
        let renew_time = Some(micro_now().into());
        self.write(LeaseSpec {
            renew_time,
            ..LeaseSpec::default()
        })
        .await?;
        self.renewed = sent;
        Ok(())
    }

    fn decision(&self) -> Decision {
        let (observed, unchanged_for) = match &self.seen {
            Some((observed, _, since)) => (Some(observed), since.elapsed()),
            None => (None, Duration::ZERO),
        };
        decide(observed, &self.identity, self.held_since, unchanged_for)
    }

    async fn observe(&mut self) -> Result<(), CallError> {
        match in_time(self.api.get_opt(LEASE_NAME)).await? {
            Some(lease) => self.saw(&lease),
            None => self.seen = None,
        }
        Ok(())
    }

    fn saw(&mut self, lease: &Lease) {
        let (observed, version) = (
            observed(lease),
            lease.metadata.resource_version.clone().unwrap_or_default(),
        );
        self.transitions = lease.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0);
        let since = match &self.seen {
            Some((before, _, since)) if *before == observed => *since,
            _ => Instant::now(),
        };
        self.seen = Some((observed, version, since));
    }

    async fn claim(&mut self) -> Result<(), CallError> {
        let (sent, now) = (Instant::now(), micro_now());
        let transitions = match &self.seen {
            Some((o, ..)) if o.holder == self.identity => self.transitions,
            Some(_) => self.transitions.saturating_add(1),
            None => 0,
        };
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        self.write(spec).await?;
        self.renewed = sent;
        self.held_since = Some(now);
        Ok(())
    }

    /// Writes the fields that are set; fails where the Lease is not as last seen.
    async fn write(&mut self, spec: LeaseSpec) -> Result<(), CallError> {
        let written = match &self.seen {
            Some((_, version, _)) => {
                let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec});
                let params = PatchParams {
                    field_manager: Some(managers::CONTROLLER.into()),
                    ..PatchParams::default()
                };
                in_time(self.api.patch(LEASE_NAME, &params, &Patch::Merge(patch))).await?
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(LEASE_NAME.into()),
                    ..ObjectMeta::default()
                };
                let params = PostParams {
                    field_manager: Some(managers::CONTROLLER.into()),
                    ..PostParams::default()
                };
                in_time(self.api.create(
                    &params,
                    &Lease {
                        metadata,
                        spec: Some(spec),
                    },
                ))
                .await?
            }
        };
        self.saw(&written);
        Ok(())
    }
}

enum RenewError {
    Lost(Lost),
    Call(CallError),
}

async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Timeout),
    }
}

fn observed(lease: &Lease) -> Observed {
    let spec = lease.spec.clone().unwrap_or_default();
    Observed {
        holder: spec.holder_identity.unwrap_or_default(),
        acquired: spec.acquire_time.map(|t| t.0),
        renewed: spec.renew_time.map(|t| t.0),
        duration: spec
            .lease_duration_seconds
            .and_then(|s| u64::try_from(s).ok())
            .map_or(LEASE_DURATION, Duration::from_secs),
    }
}

/// Now, in the precision in which the API server keeps it.
fn micro_now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// 80-120 %, so that standbys do not look in step.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_reads_back_as_it_was_written() {
        let now = micro_now();
        let lease: Lease = serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": {
            "holderIdentity": "a", "acquireTime": MicroTime(now), "renewTime": MicroTime(now), "leaseDurationSeconds": 7}}))
        .unwrap();
        let want = Observed {
            holder: "a".into(),
            acquired: Some(now),
            renewed: Some(now),
            duration: Duration::from_secs(7),
        };
        assert_eq!(observed(&lease), want);
        assert_eq!(observed(&Lease::default()).duration, LEASE_DURATION);
    }
}
