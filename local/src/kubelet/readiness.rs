//! Readiness probes: HTTP and TCP, against the port that the container really has here.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Context, fields};

/// Pause between two tries until the first success. A kubelet waits `periodSeconds` here as well; a person should not.
const EAGER: Duration = Duration::from_millis(200);

/// Probes for ever; says what it finds. A probe of a kind that is not played finds nothing: the container is never ready.
pub async fn watch(
    context: &Context,
    pod: &core::Pod,
    container: &core::Container,
    probe: &core::Probe,
    ready: impl Fn(bool),
) -> Infallible {
    let seconds = |value: Option<i32>, default: u64| Duration::from_secs(value.map_or(default, |v| v.max(0) as u64));
    let (port, path) = match (&probe.http_get, &probe.tcp_socket) {
        (Some(http), _) => (&http.port, Some(http.path.clone().unwrap_or_else(|| "/".to_owned()))),
        (None, Some(tcp)) => (&tcp.port, None),
        (None, None) => {
            tracing::warn!(
                pod = fields::name(pod),
                container = container.name,
                "only HTTP and TCP probes are played"
            );
            return std::future::pending().await;
        }
    };
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let tolerated = probe.failure_threshold.unwrap_or(3);
    let mut failures = tolerated;
    loop {
        // Looked up each time: the container's port may be known only once it is started.
        let host = container_port(container, port).and_then(|p| context.host_ports.get(&fields::uid(pod), p));
        let passed = match host {
            Some(host) => matches!(
                tokio::time::timeout(timeout, check(host, path.as_deref())).await,
                Ok(Ok(true))
            ),
            None => false,
        };
        failures = if passed { 0 } else { failures.saturating_add(1) };
        if passed || failures >= tolerated {
            ready(passed);
        }
        tokio::time::sleep(if passed {
            seconds(probe.period_seconds, 10)
        } else {
            EAGER
        })
        .await;
    }
}

/// A port given by number, or by the name that the container declares it under.
pub fn container_port(container: &core::Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let port = ports.into_iter().find(|p| p.name.as_deref() == Some(name))?;
            u16::try_from(port.container_port).ok()
        }
    }
}

/// Whether the port answers; with a path, whether it answers 2xx or 3xx.
async fn check(port: u16, path: Option<&str>) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let Some(path) = path else { return Ok(true) };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: kube-probe/berth-local\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200": the rest does not matter.
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    Ok(start.starts_with(b"HTTP/1.") && matches!(start[9], b'2' | b'3'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_2xx_and_3xx_pass() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 302 Found\r\n\r\n", true),
            ("HTTP/1.1 503 No\r\n\r\n", false),
        ] {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            assert_eq!(check(port, Some("/readyz")).await.unwrap(), want, "{answer}");
        }
    }

    #[test]
    fn ports_have_names() {
        let container: core::Container = serde_json::from_value(
            serde_json::json!({"name": "c", "ports": [{"name": "http", "containerPort": 9401}]}),
        )
        .unwrap();
        assert_eq!(
            container_port(&container, &IntOrString::String("http".to_owned())),
            Some(9401)
        );
        assert_eq!(container_port(&container, &IntOrString::Int(80)), Some(80));
        assert_eq!(
            container_port(&container, &IntOrString::String("grpc".to_owned())),
            None
        );
    }
}
