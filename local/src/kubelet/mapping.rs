//! How a container's words become this machine's: mount paths, listening addresses, Service names, `$(VARIABLES)`.
//!
//! ```text
//! --socket=/run/berth/probe.sock              ─► --socket=<state>/pods/<pod>/run/probe.sock
//! --http-address=0.0.0.0:9401                 ─► --http-address=127.0.0.1:20117
//! --controller=berth-controller.ns.svc:8443   ─► --controller=127.0.0.1:41205   (a forwarder, see `service`)
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A container path and what it is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Without a trailing slash.
    pub container: String,
    /// Folder or file.
    pub host: PathBuf,
}

/// Replaces every path at or below a mount. The longest mount wins, as in a container.
pub fn rewrite_paths(text: &str, mounts: &[Mount]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut inside = false;
    while let Some(c) = rest.chars().next() {
        let hit = if c == '/' && !inside {
            longest(rest, mounts)
        } else {
            None
        };
        if let Some(mount) = hit {
            out.push_str(&mount.host.to_string_lossy());
            rest = &rest[mount.container.len()..];
            inside = true;
        } else {
            out.push(c);
            inside = is_path_char(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn longest<'a>(text: &str, mounts: &'a [Mount]) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| {
            text.strip_prefix(mount.container.as_str())
                .is_some_and(|after| after.chars().next().is_none_or(|c| c == '/' || !is_path_char(c)))
        })
        .max_by_key(|mount| mount.container.len())
}

fn is_path_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '~' | '+' | '@')
}

/// An address in a container's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// It listens on all interfaces.
    Listen(u16),
    /// It connects to a Service.
    Service {
        /// Name of the Service.
        name: String,
        /// Its namespace.
        namespace: String,
        /// Its port.
        port: u16,
    },
}

/// Replaces every listening address and every Service address; what `replace` does not know stays.
pub fn rewrite_addresses<E>(
    text: &str,
    mut replace: impl FnMut(Address) -> Result<Option<String>, E>,
) -> Result<String, E> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word_end = rest.find(|c| !is_address_char(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let replacement = match address(word) {
            Some(address) => replace(address)?,
            None => None,
        };
        out.push_str(replacement.as_deref().unwrap_or(word));
        let gap_end = after.find(is_address_char).unwrap_or(after.len());
        out.push_str(&after[..gap_end]);
        rest = &after[gap_end..];
    }
    Ok(out)
}

fn is_address_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']')
}

fn address(word: &str) -> Option<Address> {
    let (host, port) = word.rsplit_once(':')?;
    let port = port.parse().ok()?;
    if host == "0.0.0.0" || host == "[::]" {
        return Some(Address::Listen(port));
    }
    let host = host
        .strip_suffix(".cluster.local")
        .unwrap_or(host)
        .strip_suffix(".svc")?;
    let (name, namespace) = host.split_once('.')?;
    if name.is_empty() || namespace.is_empty() || namespace.contains('.') {
        return None;
    }
    Some(Address::Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        port,
    })
}

/// Kubernetes' own `$(VARIABLE)`: unknown ones stay as they are, `$$(X)` becomes `$(X)`.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = rest.strip_prefix("$(").and_then(|r| r.split_once(')'));
        match reference.and_then(|(name, after)| Some((variables.get(name)?, after))) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_mounts_move() {
        let mount = |container: &str, host: &str| Mount {
            container: container.to_owned(),
            host: host.into(),
        };
        let mounts = [
            mount("/host", "/n/root"),
            mount("/sys-host", "/n/sys"),
            mount("/run/berth", "/p/run"),
            mount("/run/berth/deep", "/p/deep"),
        ];
        let cases = [
            ("--socket=/run/berth/probe.sock", "--socket=/p/run/probe.sock"),
            ("/run/berth", "/p/run"),
            ("/run/berth/deep/x", "/p/deep/x"),
            ("/run/berthed/x", "/run/berthed/x"),
            (
                "--driver-root=/host/run/nvidia/driver",
                "--driver-root=/n/root/run/nvidia/driver",
            ),
            ("--sysfs-root=/sys-host", "--sysfs-root=/n/sys"),
            ("a=/host:/sys-host,/host/x", "a=/n/root:/n/sys,/n/root/x"),
            ("/opt/host/x", "/opt/host/x"),
            ("https://host/x", "https://host/x"),
            ("cat /host/é /sys-host", "cat /n/root/é /n/sys"),
        ];
        for (text, want) in cases {
            assert_eq!(rewrite_paths(text, &mounts), want, "{text}");
        }
    }

    #[test]
    fn addresses_are_told_apart() {
        let replace = |address| {
            Ok::<_, ()>(match address {
                Address::Listen(port) => Some(format!("127.0.0.1:1{port}")),
                Address::Service { name, namespace, port } if namespace != "unknown" => {
                    Some(format!("<{namespace}/{name}:{port}>"))
                }
                Address::Service { .. } => None,
            })
        };
        let cases = [
            ("--http-address=0.0.0.0:9401", "--http-address=127.0.0.1:19401"),
            ("[::]:80", "127.0.0.1:180"),
            (
                "--controller=berth-controller.berth-system.svc:8443",
                "--controller=<berth-system/berth-controller:8443>",
            ),
            (
                "http://a.b.svc.cluster.local:1/x?y=c.d.svc:2",
                "http://<b/a:1>/x?y=<d/c:2>",
            ),
            (
                "--controller-name=berth-controller.berth-system.svc",
                "--controller-name=berth-controller.berth-system.svc",
            ),
            ("a.unknown.svc:1", "a.unknown.svc:1"),
            ("127.0.0.1:80 10.0.0.0:8", "127.0.0.1:80 10.0.0.0:8"),
            ("0.0.0.0:99999", "0.0.0.0:99999"),
        ];
        for (text, want) in cases {
            assert_eq!(rewrite_addresses(text, replace).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn variables_expand_as_in_a_kubelet() {
        let variables = BTreeMap::from([("NS".to_owned(), "berth".to_owned())]);
        let cases = [
            ("a.$(NS).svc", "a.berth.svc"),
            ("$(NS)$(NS)", "berthberth"),
            ("$(OTHER)", "$(OTHER)"),
            ("$$(NS)", "$(NS)"),
            ("$NS $", "$NS $"),
            ("$(NS", "$(NS"),
        ];
        for (text, want) in cases {
            assert_eq!(expand(text, &variables), want, "{text}");
        }
    }
}
