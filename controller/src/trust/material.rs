//! CA and leaf of the agent link: minting, and reading what a Secret holds with all doubt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

/// Life of a CA; a new one is published at two thirds of it.
pub const CA_LIFE: Duration = Duration::from_secs(365 * 86400);
/// Life of a leaf; it is minted anew at two thirds of it.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 86400);
/// How far a peer's clock may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Keys of the Secret.
pub mod keys {
    /// CA certificates: first the one that signs, then earlier ones that are still published.
    pub const CA_CERTIFICATE: &str = "ca.crt";
    /// Key of the signing CA.
    pub const CA_KEY: &str = "ca.key";
    /// Leaf certificate.
    pub const LEAF_CERTIFICATE: &str = "tls.crt";
    /// Key of the leaf.
    pub const LEAF_KEY: &str = "tls.key";
    /// CA that is published and does not sign yet.
    pub const NEXT_CA_CERTIFICATE: &str = "ca-next.crt";
    /// Its key.
    pub const NEXT_CA_KEY: &str = "ca-next.key";
    /// All of them.
    pub const ALL: [&str; 6] = [
        CA_CERTIFICATE,
        CA_KEY,
        LEAF_CERTIFICATE,
        LEAF_KEY,
        NEXT_CA_CERTIFICATE,
        NEXT_CA_KEY,
    ];
}

/// Why something stored cannot be used, or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {problem}")]
pub struct Damage {
    /// Key of the Secret.
    pub what: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Damage {
    fn new(what: &'static str, problem: impl ToString) -> Self {
        Self {
            what,
            problem: problem.to_string(),
        }
    }
}

/// A certificate with its validity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// DER.
    pub der: CertificateDer<'static>,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
}

impl Certificate {
    fn parse(what: &'static str, der: CertificateDer<'static>) -> Result<Self, Damage> {
        let (_, x509) = x509_parser::parse_x509_certificate(&der).map_err(|e| Damage::new(what, e))?;
        let time =
            |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).map_err(|e| Damage::new(what, e));
        let (not_before, not_after) = (time(x509.validity.not_before)?, time(x509.validity.not_after)?);
        Ok(Self {
            not_before,
            not_after,
            der,
        })
    }

    /// PEM, with a line break at the end.
    pub fn pem(&self) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(&self.der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .filter_map(|c| std::str::from_utf8(c).ok())
            .collect();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        )
    }

    /// Not valid any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.not_after
    }

    /// Two thirds of its life are over.
    pub fn is_aged(&self, now: Timestamp) -> bool {
        let (life, age) = (
            self.not_after.duration_since(self.not_before),
            now.duration_since(self.not_before),
        );
        age.saturating_mul(3) >= life.saturating_mul(2)
    }
}

/// A certificate with its key as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyedCertificate {
    /// Certificate.
    pub certificate: Certificate,
    /// Private key, PKCS#8 PEM.
    pub key: String,
}

impl std::fmt::Debug for KeyedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("KeyedCertificate")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Everything that the Secret holds, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// CA that signs leaves.
    pub signing: KeyedCertificate,
    /// CAs that signed before.
    pub earlier: Vec<Certificate>,
    /// CA that will sign once every agent can know it.
    pub next: Option<KeyedCertificate>,
    /// What is served, or why it cannot be.
    pub leaf: Result<KeyedCertificate, Damage>,
}

impl Material {
    /// A new CA and a leaf of it.
    pub fn mint(names: &[String], now: Timestamp) -> Result<Self, Damage> {
        let signing = mint_ca(now)?;
        let leaf = Ok(mint_leaf(&signing, names, now)?);
        Ok(Self {
            signing,
            earlier: Vec::new(),
            next: None,
            leaf,
        })
    }

    /// The same with a new leaf.
    pub fn with_new_leaf(self, names: &[String], now: Timestamp) -> Result<Self, Damage> {
        let leaf = Ok(mint_leaf(&self.signing, names, now)?);
        Ok(Self { leaf, ..self })
    }

    /// The same with a new CA to be published, unless there is one already.
    pub fn with_next(self, now: Timestamp) -> Result<Self, Damage> {
        let next = Some(match self.next {
            Some(next) => next,
            None => mint_ca(now)?,
        });
        Ok(Self { next, ..self })
    }

    /// The published next CA signs from now on; the one before stays known.
    pub fn promoted(mut self, names: &[String], now: Timestamp) -> Result<Self, Damage> {
        let Some(next) = self.next.take() else { return Ok(self) };
        let leaf = Ok(mint_leaf(&next, names, now)?);
        let mut earlier = vec![self.signing.certificate];
        earlier.extend(self.earlier);
        earlier.retain(|c| !c.is_expired(now));
        Ok(Self {
            signing: next,
            earlier,
            next: None,
            leaf,
        })
    }

    /// What agents may trust: old, present and coming CA.
    pub fn published(&self, now: Timestamp) -> String {
        std::iter::once(&self.signing.certificate)
            .chain(self.next.as_ref().map(|n| &n.certificate))
            .chain(&self.earlier)
            .filter(|c| !c.is_expired(now))
            .map(Certificate::pem)
            .collect()
    }

    /// The Secret's data. Every key of [`keys::ALL`] that is missing here has to be absent there.
    pub fn to_data(&self) -> BTreeMap<&'static str, ByteString> {
        let bundle: String = std::iter::once(&self.signing.certificate)
            .chain(&self.earlier)
            .map(Certificate::pem)
            .collect();
        let mut data = BTreeMap::from([(keys::CA_CERTIFICATE, bundle), (keys::CA_KEY, self.signing.key.clone())]);
        if let Ok(leaf) = &self.leaf {
            data.insert(keys::LEAF_CERTIFICATE, leaf.certificate.pem());
            data.insert(keys::LEAF_KEY, leaf.key.clone());
        }
        if let Some(next) = &self.next {
            data.insert(keys::NEXT_CA_CERTIFICATE, next.certificate.pem());
            data.insert(keys::NEXT_CA_KEY, next.key.clone());
        }
        data.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()
    }

    /// Reads a Secret's data. An unusable CA is an error, an unusable leaf or next CA is not: those can be minted anew.
    pub fn from_data(data: &BTreeMap<String, ByteString>, names: &[String], now: Timestamp) -> Result<Self, Damage> {
        let mut authorities = certificates(data, keys::CA_CERTIFICATE)?;
        let signing = KeyedCertificate {
            certificate: authorities.remove(0),
            key: text(data, keys::CA_KEY)?,
        };
        check_ca_key(&signing, keys::CA_KEY)?;
        let next = match data.contains_key(keys::NEXT_CA_CERTIFICATE) {
            true => next_ca(data)
                .inspect_err(|e| tracing::warn!(%e, "the CA to come is damaged and is dropped"))
                .ok(),
            false => None,
        };
        let leaf = leaf(data, &signing.certificate, names, now);
        Ok(Self {
            signing,
            earlier: authorities,
            next,
            leaf,
        })
    }
}

fn next_ca(data: &BTreeMap<String, ByteString>) -> Result<KeyedCertificate, Damage> {
    let certificate = certificates(data, keys::NEXT_CA_CERTIFICATE)?.remove(0);
    let next = KeyedCertificate {
        certificate,
        key: text(data, keys::NEXT_CA_KEY)?,
    };
    check_ca_key(&next, keys::NEXT_CA_KEY)?;
    Ok(next)
}

/// The stored leaf, if an agent that trusts `ca` would accept it under every name now.
fn leaf(
    data: &BTreeMap<String, ByteString>,
    ca: &Certificate,
    names: &[String],
    now: Timestamp,
) -> Result<KeyedCertificate, Damage> {
    let certificate = certificates(data, keys::LEAF_CERTIFICATE)?.remove(0);
    let leaf = KeyedCertificate {
        certificate,
        key: text(data, keys::LEAF_KEY)?,
    };
    certified_key(&leaf)?;
    let problem = |e: &dyn std::fmt::Display| Damage::new(keys::LEAF_CERTIFICATE, e);
    let mut roots = RootCertStore::empty();
    roots.add(ca.der.clone()).map_err(|e| problem(&e))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .map_err(|e| problem(&e))?;
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    for name in names {
        let server = ServerName::try_from(name.as_str()).map_err(|e| problem(&e))?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier
            .verify_server_cert(&leaf.certificate.der, &[], &server, &[], at)
            .map_err(|e| Damage::new(keys::LEAF_CERTIFICATE, format!("{e} (name {name})")))?;
    }
    Ok(leaf)
}

/// Certificate and key as rustls serves them; fails where the two do not belong together.
pub fn certified_key(leaf: &KeyedCertificate) -> Result<CertifiedKey, Damage> {
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|e| Damage::new(keys::LEAF_KEY, e))?;
    CertifiedKey::from_der(vec![leaf.certificate.der.clone()], key, &ring::default_provider())
        .map_err(|e| Damage::new(keys::LEAF_KEY, e))
}

fn text(data: &BTreeMap<String, ByteString>, key: &'static str) -> Result<String, Damage> {
    let bytes = data.get(key).ok_or_else(|| Damage::new(key, "is missing"))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| Damage::new(key, "is not text"))
}

/// At least one.
fn certificates(data: &BTreeMap<String, ByteString>, key: &'static str) -> Result<Vec<Certificate>, Damage> {
    let pem = text(data, key)?;
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|der| Certificate::parse(key, der.map_err(|e| Damage::new(key, e))?))
        .collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err(Damage::new(key, "holds no certificate"));
    }
    Ok(certificates)
}

fn check_ca_key(ca: &KeyedCertificate, what: &'static str) -> Result<(), Damage> {
    let key = KeyPair::from_pem(&ca.key).map_err(|e| Damage::new(what, e))?;
    let (_, x509) = x509_parser::parse_x509_certificate(&ca.certificate.der).map_err(|e| Damage::new(what, e))?;
    if x509.public_key().raw != key.subject_public_key_info() {
        return Err(Damage::new(what, "does not belong to the certificate"));
    }
    Ok(())
}

fn mint_ca(now: Timestamp) -> Result<KeyedCertificate, Damage> {
    let failed = |e: rcgen::Error| Damage::new(keys::CA_CERTIFICATE, e);
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(
        DnType::CommonName,
        format!("berth agent link CA {}", now.strftime("%F %T")),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = SystemTime::from(now - CLOCK_SKEW).into();
    params.not_after = SystemTime::from(now + CA_LIFE).into();
    let certificate = params.self_signed(&key).map_err(failed)?;
    let certificate = Certificate::parse(keys::CA_CERTIFICATE, certificate.der().clone())?;
    Ok(KeyedCertificate {
        certificate,
        key: key.serialize_pem(),
    })
}

fn mint_leaf(ca: &KeyedCertificate, names: &[String], now: Timestamp) -> Result<KeyedCertificate, Damage> {
    let failed = |e: rcgen::Error| Damage::new(keys::LEAF_CERTIFICATE, e);
    let ca_key = KeyPair::from_pem(&ca.key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_der(&ca.certificate.der, ca_key).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(names).map_err(failed)?;
    let common_name = names.first().map_or("berth-controller", String::as_str);
    // A common name has at most 64 characters; nobody reads it.
    params
        .distinguished_name
        .push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = SystemTime::from(now - CLOCK_SKEW).into();
    params.not_after = SystemTime::from(now + LEAF_LIFE).into();
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    let certificate = Certificate::parse(keys::LEAF_CERTIFICATE, certificate.der().clone())?;
    Ok(KeyedCertificate {
        certificate,
        key: key.serialize_pem(),
    })
}
