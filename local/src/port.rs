//! Loopback ports that two clusters on one machine cannot both get.
//!
//! Between choosing a port and the server's own bind, another process may take it. Two things keep that from happening: the range
//! lies below the kernel's ephemeral range, and every cluster holds, for each of its ports, an abstract unix socket of that
//! number (freed by the kernel when the process ends, however it ends).

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// First port that is tried.
const FIRST: u16 = 20_000;
/// Last port that is tried; Linux hands out 32768 and above to outgoing connections.
const LAST: u16 = 32_767;

/// The ports of one cluster.
#[derive(Debug, Default)]
pub struct Ports {
    held: Mutex<Vec<(u16, UnixListener)>>,
}

impl Ports {
    /// A port that nobody listens on, and that no other cluster will take while this one lives.
    pub fn take(&self) -> Result<u16> {
        let mut held = self.held.lock();
        // Clusters start at different places, so that they rarely try the same port.
        let span = u32::from(LAST - FIRST) + 1;
        let start = std::process::id().wrapping_mul(97).wrapping_add(held.len() as u32);
        for i in 0..span {
            let port = FIRST + (start.wrapping_add(i) % span) as u16;
            if let Some(guard) = claim(port) {
                held.push((port, guard));
                return Ok(port);
            }
        }
        Err(Error::NoPort {
            first: FIRST,
            last: LAST,
        })
    }
}

fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("berth-port-{port}")).ok()?;
    let guard = UnixListener::bind_addr(&name).ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    Some(guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let (a, b) = (Ports::default(), Ports::default());
        let mut ports = vec![];
        for _ in 0..20 {
            ports.push(a.take().unwrap());
            ports.push(b.take().unwrap());
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 40);
    }

    #[test]
    fn a_port_in_use_is_passed_over() {
        let ports = Ports::default();
        let next = ports.take().unwrap() + 1;
        let _busy = TcpListener::bind((Ipv4Addr::LOCALHOST, next));
        assert_ne!(ports.take().unwrap(), next);
    }
}
