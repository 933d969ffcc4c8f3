//! An HTTP server on loopback that answers as a test says, plain or with TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// A request, as far as tests look at it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub path: String,
    pub range: Option<u64>,
    pub if_range: Option<String>,
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file with this entity tag, whole or from where it is asked for.
    pub fn file(request: &Request, body: &[u8], etag: &str) -> Self {
        let same = request.if_range.as_deref().is_none_or(|tag| tag == etag);
        let size = body.len() as u64;
        let answer = match request.range.filter(|_| same) {
            Some(from) if from >= size => Self::status(416),
            Some(from) => Self {
                status: 206,
                body: body[usize::try_from(from).unwrap()..].to_vec(),
                ..Self::default()
            }
            .with("Content-Range", format!("bytes {from}-{}/{size}", size - 1)),
            None => Self {
                status: 200,
                body: body.to_vec(),
                ..Self::default()
            },
        };
        answer.with("ETag", etag)
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

type Handler = dyn Fn(usize, &Request) -> Answer + Send + Sync;

/// The server; it ends with the value.
pub struct Server {
    pub address: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl Server {
    /// Answers each request by its number and contents.
    pub fn start(handler: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::run("http", None, Arc::new(handler))
    }

    /// The same with a certificate that nobody vouches for, in PEM, for `localhost`.
    pub fn start_tls(handler: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> (Self, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let server = Self::run("https", Some(Arc::new(config)), Arc::new(handler));
        (server, made.cert.pem())
    }

    fn run(scheme: &str, tls: Option<Arc<rustls::ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = if tls.is_some() { "localhost" } else { "127.0.0.1" };
        let address = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (seen, stop) = (requests.clone(), ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                match &tls {
                    None => answer(stream, &seen, handler.as_ref()),
                    Some(config) => {
                        let session = rustls::ServerConnection::new(config.clone()).unwrap();
                        answer(rustls::StreamOwned::new(session, stream), &seen, handler.as_ref());
                    }
                }
            }
        });
        Self {
            address,
            requests,
            ended,
        }
    }

    pub fn seen(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let port = self.address.rsplit(':').next().unwrap_or_default().to_owned();
        let _ = TcpStream::connect(format!("127.0.0.1:{port}"));
    }
}

/// One request a connection.
fn answer(stream: impl Read + Write, seen: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            // A client that does not like the certificate, or the end of the server.
            Err(_) | Ok(0) => return,
            Ok(_) if line.trim_end().is_empty() => break,
            Ok(_) => lines.push(line.trim_end().to_owned()),
        }
    }
    let header = |name: &str| {
        let fields = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
        let mut found = fields
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.to_owned());
        found.next()
    };
    let request = Request {
        path: lines[0].split(' ').nth(1).unwrap_or_default().to_owned(),
        range: header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()),
        if_range: header("if-range"),
    };
    let number = {
        let mut seen = seen.lock();
        seen.push(request.clone());
        seen.len()
    };
    let answer = handler(number, &request);
    let mut head = format!(
        "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let stream = reader.get_mut();
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len())];
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .and_then(|()| stream.flush());
}
