//! What every test of the real process needs: the fake library, a process that does not outlive its test, its socket.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use berth_proto::probe::v1::probe_client::ProbeClient;
use hyper_util::rt::TokioIo;
use nvidia_ml::library;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The fake library, built once.
pub fn built_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| library::build().unwrap())
}

/// Ends a process for good.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A client, as soon as somebody listens.
pub async fn connect(socket: PathBuf, patience: Duration) -> ProbeClient<Channel> {
    let start = Instant::now();
    loop {
        let socket = socket.clone();
        let connected = Endpoint::from_static("http://probe")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await;
        match connected {
            Ok(channel) => return ProbeClient::new(channel),
            Err(error) => assert!(start.elapsed() < patience, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client that connects when it is asked something, and again after the process was replaced.
pub fn client(socket: PathBuf) -> ProbeClient<Channel> {
    let channel =
        Endpoint::from_static("http://probe").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }));
    ProbeClient::new(channel)
}
