//! Certificates and keys of one cluster, made anew at each start.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::error::{Error, Result};
use crate::files;

/// First address of the Service range: what pods know the API server by.
pub const API_SERVICE_IP: &str = "10.96.0.1";

/// Who asks KEDA's servers calls them so: the adapter the operator, and the API server the adapter.
const KEDA_NAMES: [&str; 2] = ["127.0.0.1", "keda-metrics-apiserver.keda.svc"];

/// A certificate file and its key file.
#[derive(Debug, Clone)]
pub struct Pair {
    /// PEM certificate.
    pub cert: PathBuf,
    /// PEM key.
    pub key: PathBuf,
}

/// Every certificate and key of the control plane.
#[derive(Debug, Clone)]
pub struct Pki {
    /// Signs servers and clients.
    pub ca: PathBuf,
    /// The same in DER, for clients in this process.
    pub ca_der: Vec<u8>,
    /// What every server presents: 127.0.0.1, localhost and the API server's in-cluster names.
    pub server: Pair,
    /// Client of group `system:masters`.
    pub admin: Pair,
    /// The API server as a client of etcd.
    pub etcd_client: Pair,
    /// Signs ServiceAccount tokens.
    pub service_account_key: PathBuf,
    /// Checks them.
    pub service_account_public_key: PathBuf,
    /// Signs the aggregator's client certificate.
    pub front_proxy_ca: PathBuf,
    /// The aggregator as a client of aggregated API servers.
    pub front_proxy_client: Pair,
    /// KEDA's certificate folder: `ca.crt`, and `tls.crt` with `tls.key` for its servers and for their clients.
    pub keda: PathBuf,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert: PathBuf,
    der: Vec<u8>,
}

impl Pki {
    /// Makes all of it in a folder that only its owner can read.
    pub fn create(folder: &Path) -> Result<Self> {
        files::folder(folder)?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder, private).map_err(Error::file("protect", folder))?;
        let ca = Authority::new(folder, "ca", "berth-local")?;
        let front_proxy = Authority::new(folder, "front-proxy-ca", "berth-local-front-proxy")?;
        let names = [
            "127.0.0.1",
            "localhost",
            API_SERVICE_IP,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let service_accounts = key("service accounts")?;
        let service_account_key = folder.join("service-account.key");
        files::write(&service_account_key, service_accounts.serialize_pem().as_bytes(), 0o600)?;
        let service_account_public_key = folder.join("service-account.pub");
        files::write(
            &service_account_public_key,
            service_accounts.public_key_pem().as_bytes(),
            0o644,
        )?;
        let keda = folder.join("keda");
        files::folder(&keda)?;
        files::copy(&ca.cert, &keda.join("ca.crt"))?;
        ca.issue(&keda, "tls", "keda", None, &KEDA_NAMES)?;
        Ok(Self {
            keda,
            server: ca.issue(folder, "server", "kube-apiserver", None, &names)?,
            admin: ca.issue(folder, "admin", "kubernetes-admin", Some("system:masters"), &[])?,
            etcd_client: ca.issue(folder, "etcd-client", "kube-apiserver-etcd-client", None, &[])?,
            front_proxy_client: front_proxy.issue(folder, "front-proxy-client", "front-proxy-client", None, &[])?,
            service_account_key,
            service_account_public_key,
            front_proxy_ca: front_proxy.cert,
            ca: ca.cert,
            ca_der: ca.der,
        })
    }
}

impl Authority {
    fn new(folder: &Path, file: &str, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = key(name)?;
        let cert = params.self_signed(&key).map_err(failed(name))?;
        let path = folder.join(format!("{file}.crt"));
        files::write(&path, cert.pem().as_bytes(), 0o644)?;
        Ok(Self {
            der: cert.der().to_vec(),
            issuer: Issuer::new(params, key),
            cert: path,
        })
    }

    /// A leaf for servers (`names` given) and clients alike.
    fn issue(&self, folder: &Path, file: &str, name: &str, group: Option<&str>, names: &[&str]) -> Result<Pair> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(failed(name))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // etcd's gateway presents its server certificate as a client to itself, so leaves are good for both.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = key(name)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed(name))?;
        let pair = Pair {
            cert: folder.join(format!("{file}.crt")),
            key: folder.join(format!("{file}.key")),
        };
        files::write(&pair.cert, cert.pem().as_bytes(), 0o644)?;
        files::write(&pair.key, key.serialize_pem().as_bytes(), 0o600)?;
        Ok(pair)
    }
}

fn key(subject: &str) -> Result<KeyPair> {
    KeyPair::generate().map_err(failed(subject))
}

fn failed(subject: &str) -> impl FnOnce(rcgen::Error) -> Error {
    let subject = subject.to_owned();
    move |cause| Error::Certificate { subject, cause }
}
