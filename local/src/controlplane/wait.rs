//! Waiting for a server with a bound, and saying why when it does not come.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::GetParams;
use kube::core::Request;

use crate::error::{Error, Result};
use crate::files;
use crate::process::Process;

/// A server that takes longer has a problem, even on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// One request.
const REQUEST: Duration = Duration::from_secs(3);

/// Waits until somebody listens on a loopback port.
pub async fn until_listening(process: &Process, port: u16) -> Result<()> {
    until(process, || async move {
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    })
    .await
}

/// Waits until a path of a server (`readyz`, `healthz`) says ok.
pub async fn until_ok(process: &Process, client: &Client, path: &str) -> Result<()> {
    until(process, || ask(client, path)).await
}

/// Asks once.
pub async fn ask(client: &Client, path: &str) -> Result<(), String> {
    let request = Request::new("")
        .get(path, &GetParams::default())
        .map_err(|e| e.to_string())?;
    match tokio::time::timeout(REQUEST, client.request_text(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", REQUEST.as_secs())),
    }
}

async fn until<F: Future<Output = Result<(), String>>>(process: &Process, check: impl Fn() -> F) -> Result<()> {
    let started = Instant::now();
    loop {
        let last = match check().await {
            Ok(()) => return Ok(()),
            Err(last) => last,
        };
        if let Some(exit) = process.exit() {
            return Err(process.ended_error(exit));
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::NotReady {
                process: process.name().to_owned(),
                seconds: PATIENCE.as_secs(),
                last,
                log: process.log().to_path_buf(),
                tail: files::tail(process.log(), 15),
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
}
