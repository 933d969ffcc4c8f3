//! Names that children must be able to bear.

use crate::kinds::dns::{LABEL, is_dns_label};
use crate::kinds::status::problems::Findings;

/// Longest DNS name, in characters.
const NAME: usize = 253;

/// The AIDeployment's name is that of its Service, which must be a DNS label that starts with a letter (RFC 1035).
pub fn service_name(name: &str, findings: &mut Findings) {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !(starts && is_dns_label(name)) {
        findings.invalid(
            "metadata.name",
            format_args!(
                "{name:?} cannot be the name of a Service: that takes at most {LABEL} of a-z, 0-9 and '-', starting with a letter and not ending with '-'"
            ),
            "create the AIDeployment under such a name",
        );
    }
}

/// Host of an Ingress rule: a DNS name, also with a first label `*`; empty means every host.
pub fn host(host: &str, path: &str, findings: &mut Findings) {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    if !host.is_empty() && (is_address || name.len() > NAME || !name.split('.').all(is_dns_label)) {
        findings.invalid(
            path,
            format_args!("{host:?} is no host name"),
            "give a lower-case DNS name without scheme, port and path, e.g. model.example.com",
        );
    }
}
