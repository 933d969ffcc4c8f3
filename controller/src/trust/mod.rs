//! Who agents may believe: the CA and the certificate of the agent link, minted and kept by the leader.
//!
//! ```text
//! Secret ─► Stored ─► next_step (pure) ─► mint ─► Secret ─► ConfigMap (CAs, for agents) ─► served certificate
//! ```
//!
//! A new CA is in the ConfigMap for ten minutes before a leaf of it is served. A Secret that is deleted or damaged while a leader runs is
//! written back from its memory and rotated to a new CA the same gentle way; a damaged one that nobody holds any more is minted anew, and
//! both are said in the log. Deleting the Secret is therefore how an operator rotates; to distrust the old CA at once, delete the Secret
//! while no controller runs.

mod material;
mod plan;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use kube::Client;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::args::Settings;
use material::{Damage, Material};
use plan::{Step, Stored, next_step};
use store::{Store, StoreError};

/// A Secret or ConfigMap edited by hand is repaired within this time.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Pause after a failed pass.
const RETRY: Duration = Duration::from_secs(2);
/// More steps in a row mean that somebody undoes them.
const MOST_STEPS: u32 = 4;

/// What the agent link presents, replaced without a restart.
#[derive(Debug, Default)]
struct Served(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

#[derive(Debug, thiserror::Error)]
enum TrustError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("certificate could not be made: {0}")]
    Mint(#[from] Damage),
    #[error("Secret {0} does not stay as it is written")]
    Unsettled(String),
}

/// The leader's certificates.
pub struct Trust {
    store: Store,
    names: Vec<String>,
    served: Arc<Served>,
    held: Option<Material>,
    /// PEM of the next CA, and since when this process has seen it published.
    published: Option<(String, Instant)>,
}

impl Trust {
    /// Nothing is read or written yet.
    pub fn new(client: Client, settings: &Settings) -> Self {
        Self {
            store: Store::new(client, settings),
            names: server_names(&settings.service, &settings.namespace),
            served: Arc::default(),
            held: None,
            published: None,
        }
    }

    /// TLS settings of the agent link. They present whatever certificate is current.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        server_config(self.served.clone())
    }

    /// Returns once a certificate is stored, published and served.
    pub async fn establish(&mut self) {
        while let Err(error) = self.pass().await {
            tracing::error!(%error, "the agent link has no certificate yet");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews, rotates and repairs for ever.
    pub async fn keep(mut self) {
        let mut pause = LOOK_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.pass().await {
                Ok(()) => LOOK_EVERY,
                Err(error) => {
                    tracing::error!(%error, "certificates of the agent link could not be looked after");
                    RETRY
                }
            };
        }
    }

    async fn pass(&mut self) -> Result<(), TrustError> {
        for _ in 0..MOST_STEPS {
            let now = Timestamp::now();
            let (stored, version) = self.store.read(&self.names, now).await?;
            let published_for = self.next_published_for(&stored);
            let step = next_step(&stored, self.held.as_ref(), published_for, now);
            let Some(material) = self.carry_out(step, stored, now)? else {
                return Err(self.unsettled());
            };
            if step != Step::Nothing {
                self.store.write(&material, version).await?;
            }
            self.publish(&material, now).await?;
            self.serve(&material)?;
            self.held = Some(material);
            if step == Step::Nothing {
                return Ok(());
            }
        }
        Err(self.unsettled())
    }

    fn unsettled(&self) -> TrustError {
        TrustError::Unsettled(self.store.secret_name().to_owned())
    }

    fn next_published_for(&self, stored: &Stored) -> Option<Duration> {
        let Stored::Good(material) = stored else { return None };
        let next = material.next.as_ref()?;
        let (pem, since) = self.published.as_ref()?;
        (*pem == next.certificate.pem()).then(|| since.elapsed())
    }

    /// The material after the step; `None` cannot happen for what [`next_step`] returns.
    fn carry_out(&self, step: Step, stored: Stored, now: Timestamp) -> Result<Option<Material>, Damage> {
        let secret = self.store.secret_name();
        if let Stored::Damaged(damage) = &stored {
            tracing::error!(%damage, secret, "the Secret cannot be used and is replaced");
        }
        let names = &self.names;
        let good = match stored {
            Stored::Good(material) => Some(*material),
            Stored::Missing | Stored::Damaged(_) => self.held.clone(),
        };
        if let (Step::MintLeaf, Some(Err(damage))) = (step, good.as_ref().map(|m| &m.leaf)) {
            tracing::warn!(%damage, secret, "the certificate cannot be served");
        }
        Ok(match (step, good) {
            (Step::Nothing, good) => good,
            (Step::MintAll, _) => {
                tracing::info!(secret, ?names, "new CA and certificate for the agent link");
                Some(Material::mint(names, now)?)
            }
            (Step::WriteBackAndRotate, Some(held)) => {
                tracing::warn!(
                    secret,
                    "the Secret was removed or damaged: written back, with a new CA to follow"
                );
                Some(held.with_next(now)?)
            }
            (Step::MintLeaf, Some(good)) => {
                tracing::info!(secret, ?names, "new certificate for the agent link");
                Some(good.with_new_leaf(names, now)?)
            }
            (Step::MintNext, Some(good)) => {
                tracing::info!(
                    secret,
                    "the CA of the agent link is aged: a new one is published beside it"
                );
                Some(good.with_next(now)?)
            }
            (Step::Promote, Some(good)) => {
                tracing::info!(secret, "the new CA of the agent link signs from now on");
                Some(good.promoted(names, now)?)
            }
            (Step::WriteBackAndRotate | Step::MintLeaf | Step::MintNext | Step::Promote, None) => None,
        })
    }

    async fn publish(&mut self, material: &Material, now: Timestamp) -> Result<(), StoreError> {
        let changed = self.store.publish(&material.published(now)).await?;
        let next = material.next.as_ref().map(|n| n.certificate.pem());
        self.published = match (next, self.published.take()) {
            (None, _) => None,
            // Somebody had taken it out: agents may have missed it.
            (Some(next), Some((pem, since))) if pem == next && !changed => Some((pem, since)),
            (Some(next), _) => Some((next, Instant::now())),
        };
        Ok(())
    }

    fn serve(&self, material: &Material) -> Result<(), Damage> {
        let unchanged = self.held.as_ref().is_some_and(|h| h.leaf == material.leaf);
        // A leaf that cannot be served is the next step's business; what was served stays.
        if let (Ok(leaf), false) = (&material.leaf, unchanged) {
            self.served.0.store(Some(Arc::new(material::certified_key(leaf)?)));
        }
        Ok(())
    }
}

/// TLS 1.3 only (agents are ours), HTTP/2 only.
fn server_config(served: Arc<Served>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring's provider has TLS 1.3 suites")
        .with_no_client_auth()
        .with_cert_resolver(served);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// What agents may call the controller.
fn server_names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        "localhost".into(),
    ]
}

/// A server of the agent link for tests: its TLS settings and the PEM of its CA.
#[cfg(test)]
pub fn for_tests(name: &str) -> (Arc<ServerConfig>, String) {
    let now = Timestamp::now();
    let material = Material::mint(&[name.to_owned()], now).unwrap();
    let served = Served::default();
    served.0.store(Some(Arc::new(
        material::certified_key(material.leaf.as_ref().unwrap()).unwrap(),
    )));
    (server_config(Arc::new(served)), material.published(now))
}
