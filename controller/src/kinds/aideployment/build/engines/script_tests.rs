//! The scripts, run by the shell, curl and tar of this machine against a server of our own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::download::Script::{self, LocalAi, LocalAiConfigs, TritonArchive, TritonFile};

/// What the server answers on a path.
#[derive(Clone)]
enum Answer {
    Body(Vec<u8>),
    /// A body that ends before its Content-Length.
    Truncated(Vec<u8>),
    /// The same in a response without one.
    TruncatedChunk(Vec<u8>),
    Redirect(String),
    Status(u16),
    /// Headers, and then nothing.
    Stalls,
}

struct Server {
    scheme: &'static str,
    port: u16,
    answers: Arc<Mutex<BTreeMap<String, Vec<Answer>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        Self::serving("http", Some)
    }

    /// With a certificate of this authority, which only those trust who are told to.
    fn with_tls() -> (Self, String) {
        let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let chain = vec![key.cert.der().clone()];
        let private = key.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider);
        let config = config
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        let config = Arc::new(config.with_single_cert(chain, private).unwrap());
        let secure = move |stream| {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            stream.flush().ok().map(|()| stream)
        };
        (Self::serving("https", secure), key.cert.pem())
    }

    fn serving<S: Read + Write + 'static>(
        scheme: &'static str,
        open: impl Fn(TcpStream) -> Option<S> + Send + Clone + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            scheme,
            port: listener.local_addr().unwrap().port(),
            answers: Arc::default(),
            asked: Arc::default(),
        };
        let (answers, asked) = (server.answers.clone(), server.asked.clone());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked, open) = (answers.clone(), asked.clone(), open.clone());
                std::thread::spawn(move || open(stream).map(|stream| serve(stream, &answers, &asked)));
            }
        });
        server
    }

    /// Answers to requests for a path, with its query, in turn; the last one stays.
    fn on(&self, path: &str, answers: Vec<Answer>) -> String {
        self.answers.lock().unwrap().insert(path.into(), answers);
        self.url(path)
    }

    fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port)
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn serve(stream: impl Read + Write, answers: &Mutex<BTreeMap<String, Vec<Answer>>>, asked: &Mutex<Vec<String>>) {
    let mut stream = BufReader::new(stream);
    let mut lines = stream.by_ref().lines();
    // Who does not like the certificate asks nothing.
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    while lines.next().is_some_and(|l| l.is_ok_and(|l| !l.is_empty())) {}
    let mut stream = stream.into_inner();
    asked.lock().unwrap().push(path.clone());
    let answer = {
        let mut answers = answers.lock().unwrap();
        match answers.get_mut(&path) {
            Some(all) if all.len() > 1 => all.remove(0),
            Some(all) => all[0].clone(),
            None => Answer::Status(404),
        }
    };
    let mut send = |head: String, body: &[u8]| {
        let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
        let _ = stream.write_all(body);
        let _ = stream.flush();
    };
    match answer {
        Answer::Body(body) => send(format!("200 OK\r\nContent-Length: {}", body.len()), &body),
        Answer::Truncated(body) => send(format!("200 OK\r\nContent-Length: {}", body.len() + 100), &body),
        Answer::TruncatedChunk(body) => {
            let chunk = [format!("{:x}\r\n", body.len() + 100).as_bytes(), &body].concat();
            send("200 OK\r\nTransfer-Encoding: chunked".into(), &chunk);
        }
        Answer::Redirect(to) => send(format!("302 Found\r\nContent-Length: 0\r\nLocation: {to}"), b""),
        // A page, as web servers send it: it must not become the model.
        Answer::Status(code) => send(format!("{code} No\r\nContent-Length: 6"), b"<html>"),
        Answer::Stalls => {
            send("200 OK\r\nContent-Length: 100".into(), b"begin");
            std::thread::sleep(Duration::from_secs(60));
        }
    }
}

/// A directory of models, and what a script makes of it.
struct Pod {
    folder: tempfile::TempDir,
    name: &'static str,
}

impl Pod {
    fn new() -> Self {
        for tool in ["curl", "tar", "find"] {
            let found = Command::new("sh")
                .args(["-c", "command -v \"$0\"", tool])
                .output()
                .unwrap();
            assert!(
                found.status.success(),
                "the download scripts are run for real, and this machine has no {tool}: apt-get install curl tar findutils"
            );
        }
        Self {
            folder: tempfile::tempdir().unwrap(),
            name: "pod-0",
        }
    }

    fn models(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, script: Script, model: &str, url: &str) -> Child {
        self.command(script, model, url).spawn().unwrap()
    }

    fn command(&self, script: Script, model: &str, url: &str) -> Command {
        let mut shell = Command::new("sh");
        // As in the init container: the script and its environment, and nothing else.
        shell
            .args(["-c", &script.text()])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOSTNAME", self.name)
            .env("BERTH_MODELS_DIR", self.models())
            .env("MODEL_NAME", model)
            .env("MODEL_PATH", url)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        shell
    }

    fn run(&self, script: Script, model: &str, url: &str) -> Output {
        self.start(script, model, url).wait_with_output().unwrap()
    }

    fn succeeds(&self, script: Script, model: &str, url: &str) -> String {
        let output = self.run(script, model, url);
        let said = said(&output);
        assert!(output.status.success(), "{url}: {said}");
        said
    }

    fn fails(&self, script: Script, model: &str, url: &str) {
        let output = self.run(script, model, url);
        assert!(!output.status.success(), "{url}: {}", said(&output));
        assert!(!output.stderr.is_empty(), "{url}: it says why");
    }

    /// Everything that an engine would read, directories too, with the content of files.
    fn content(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        collect(self.models(), self.models(), &mut all);
        let left: Vec<_> = all.keys().filter(|k| k.starts_with(".berth-part")).collect();
        assert!(left.is_empty(), "{left:?}");
        all.retain(|name, _| !(name.starts_with(".berth-model-") && name.ends_with(".keep")));
        all
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|b| String::from_utf8_lossy(b).into_owned())
        .concat()
}

fn collect(folder: &Path, root: &Path, all: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all.insert(format!("{name}/"), String::new());
            collect(&path, root, all);
        } else {
            all.insert(
                name,
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned(),
            );
        }
    }
}

fn files<const N: usize>(all: [(&str, &str); N]) -> BTreeMap<String, String> {
    all.map(|(name, text)| (name.to_owned(), text.to_owned())).into()
}

fn body(text: &str) -> Vec<Answer> {
    vec![Answer::Body(text.into())]
}

/// An archive with these files, packed by tar with this option.
fn archive(option: &str, files: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path: PathBuf = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let packed = Command::new("tar")
        .args([option, "-f", "-", "-C"])
        .arg(folder.path())
        .arg(".")
        .output()
        .unwrap();
    assert!(packed.status.success());
    packed.stdout
}

#[test]
fn a_redirect_is_followed_and_the_file_is_named_after_the_model() {
    let (server, pod) = (Server::start(), Pod::new());
    server.on("/real", body("weights"));
    let url = server.on("/m.gguf?download=true", vec![Answer::Redirect("/real".into())]);
    pod.succeeds(LocalAi, "tinyllama-1.1b-chat-v0.1", &url);
    assert_eq!(pod.content(), files([("tinyllama-1.1b-chat-v0.1", "weights")]));
}

/// What the original drops, so that its own example of a YAML URL did nothing.
#[test]
fn a_yaml_url_stays_a_configuration_file() {
    let (server, pod) = (Server::start(), Pod::new());
    let url = server.on("/a/mixtral.yaml?raw=true", body("name: mixtral"));
    pod.succeeds(LocalAi, "mixtral", &format!("{url}#x.gguf"));
    pod.succeeds(LocalAi, "other", &server.on("/other.yml", body("name: other")));
    assert_eq!(
        pod.content(),
        files([("mixtral.yaml", "name: mixtral"), ("other.yml", "name: other")])
    );
}

#[test]
fn an_error_page_is_no_model() {
    let (server, pod) = (Server::start(), Pod::new());
    for script in [LocalAi, TritonFile, TritonArchive] {
        pod.fails(script, "m", &server.url("/missing.tar"));
        pod.fails(script, "m", &server.on("/forbidden.tar", vec![Answer::Status(403)]));
    }
    assert_eq!(pod.content(), files([]));
}

#[test]
fn half_a_file_is_no_model_and_a_restart_gets_the_whole() {
    let (server, pod) = (Server::start(), Pod::new());
    for (script, name) in [(LocalAi, "m"), (TritonFile, "m/1/m.onnx")] {
        for half in [
            Answer::Truncated(b"hal".into()),
            Answer::TruncatedChunk(b"hal".into()),
            Answer::Body(Vec::new()),
        ] {
            let url = server.on("/m.onnx", vec![half, Answer::Body(b"whole".into())]);
            pod.fails(script, "m", &url);
            assert_eq!(pod.content().values().filter(|text| !text.is_empty()).count(), 0);
            pod.succeeds(script, "m", &url);
            assert_eq!(pod.content()[name], "whole");
            let _ = std::fs::remove_file(pod.models().join(".berth-model-m.keep"));
            let _ = std::fs::remove_dir_all(pod.models().join("m"));
            let _ = std::fs::remove_file(pod.models().join("m"));
        }
    }
}

#[test]
fn a_server_that_is_down_for_a_moment_is_asked_again() {
    let (server, pod) = (Server::start(), Pod::new());
    let url = server.on("/m", vec![Answer::Status(503), Answer::Body(b"weights".into())]);
    pod.succeeds(LocalAi, "m", &url);
    assert_eq!(pod.content(), files([("m", "weights")]));
    assert_eq!(server.requests(), 2);
}

#[test]
fn what_is_complete_is_not_downloaded_again() {
    let (server, pod) = (Server::start(), Pod::new());
    let tar = server.on(
        "/repo.tar",
        vec![Answer::Body(archive("-c", &[("a/1/model.onnx", "a")]))],
    );
    for (script, url) in [
        (LocalAi, server.on("/m", body("old"))),
        (TritonFile, server.on("/x.onnx", body("x"))),
        (TritonArchive, tar),
    ] {
        let pod = Pod::new();
        let before = server.requests();
        pod.succeeds(script, "m", &url);
        let content = pod.content();
        let said = pod.succeeds(script, "m", &url);
        assert!(said.contains("already complete"), "{said}");
        assert_eq!((server.requests(), pod.content()), (before + 1, content));
    }
    // Another URL is another model, and what was there goes.
    pod.succeeds(LocalAi, "m", &server.url("/m"));
    pod.succeeds(LocalAi, "m", &server.on("/m.yaml", body("new")));
    assert_eq!(pod.content(), files([("m.yaml", "new")]));
    // So does one whose file somebody removed.
    std::fs::remove_file(pod.models().join("m.yaml")).unwrap();
    pod.succeeds(LocalAi, "m", &server.url("/m.yaml"));
    assert_eq!(pod.content(), files([("m.yaml", "new")]));
}

#[test]
fn a_file_without_its_mark_is_not_trusted() {
    let (server, pod) = (Server::start(), Pod::new());
    std::fs::write(pod.models().join("m"), "half").unwrap();
    pod.succeeds(LocalAi, "m", &server.on("/m", body("whole")));
    assert_eq!(pod.content(), files([("m", "whole")]));
}

/// What was begun after the mark was made makes it void, also where it did not come to an end.
#[test]
fn an_old_mark_is_not_believed_after_a_failed_change() {
    let (server, pod) = (Server::start(), Pod::new());
    let (old, new) = (server.on("/old", body("old")), server.on("/new", body("new")));
    pod.succeeds(LocalAi, "m", &old);
    let file = pod.models().join("m");
    std::fs::remove_file(&file).unwrap();
    // Nothing can be moved to where a directory is.
    std::fs::create_dir(&file).unwrap();
    pod.fails(LocalAi, "m", &new);
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "new").unwrap();
    pod.succeeds(LocalAi, "m", &old);
    assert_eq!(pod.content(), files([("m", "old")]));
}

#[test]
fn names_and_urls_are_words_and_never_code() {
    let (server, pod) = (Server::start(), Pod::new());
    let name = "a b'\"$(touch x)`touch y`;*";
    let path = "/it's$(touch${IFS}z)[1-2]{a,b};&'\"*.onnx";
    let url = server.on(path, body("weights"));
    pod.succeeds(LocalAi, name, &url);
    assert_eq!(pod.content(), files([(name, "weights")]));
    assert_eq!(server.asked.lock().unwrap().as_slice(), [path]);
    let file = path.trim_start_matches('/');
    let pod = Pod::new();
    pod.succeeds(TritonFile, name, &url);
    let (version, path) = (format!("{name}/1/"), format!("{name}/1/{file}"));
    assert_eq!(
        pod.content(),
        files([(&format!("{name}/"), ""), (&version, ""), (&path, "weights")])
    );
    for (name, url) in [
        ("../m", url.as_str()),
        ("m", "-o/tmp/x"),
        ("m", "file:///etc/passwd"),
        ("m", "http://127.0.0.1/a b"),
    ] {
        pod.fails(LocalAi, name, url);
    }
}

#[test]
fn a_redirect_leads_to_no_file_of_the_pod() {
    let (server, pod) = (Server::start(), Pod::new());
    pod.fails(
        LocalAi,
        "m",
        &server.on("/m", vec![Answer::Redirect("file:///etc/passwd".into())]),
    );
    assert_eq!(pod.content(), files([]));
}

#[test]
fn a_server_that_nobody_vouches_for_is_not_believed() {
    let (server, authority) = Server::with_tls();
    let (plain, pod) = (Server::start(), Pod::new());
    let url = server.on("/m", body("weights"));
    pod.fails(LocalAi, "m", &url);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority).unwrap();
    let trusting = |url: &str| {
        let mut shell = pod.command(LocalAi, "m", url);
        shell.env("CURL_CA_BUNDLE", file.path()).output().unwrap()
    };
    let elsewhere = server.on("/elsewhere", vec![Answer::Redirect(plain.on("/m", body("forged")))]);
    assert!(!trusting(&elsewhere).status.success(), "a redirect does not leave TLS");
    assert_eq!((plain.requests(), pod.content()), (0, files([])));
    let output = trusting(&url);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(pod.content(), files([("m", "weights")]));
}

/// The original gave tar a word too many: nothing was ever unpacked.
#[test]
fn an_archive_becomes_the_model_repository() {
    let server = Server::start();
    let repository = [
        ("a b/config.pbtxt", "name"),
        ("a b/1/model.onnx", "weights"),
        ("a b/1/$(x)'", "odd"),
    ];
    let want = files([
        ("a b/", ""),
        ("a b/1/", ""),
        ("a b/1/$(x)'", "odd"),
        ("a b/1/model.onnx", "weights"),
        ("a b/config.pbtxt", "name"),
    ]);
    for (option, path) in [
        ("-c", "/repo.tar"),
        ("-cz", "/repo.tar.gz"),
        ("-cz", "/repo.tgz?x=1"),
        ("-c", "/get?file=repo.tar"),
    ] {
        let pod = Pod::new();
        server.on("/cdn", vec![Answer::Body(archive(option, &repository))]);
        pod.succeeds(
            TritonArchive,
            "m",
            &server.on(path, vec![Answer::Redirect("/cdn".into())]),
        );
        assert_eq!(pod.content(), want, "{path}");
    }
}

#[test]
fn archives_may_share_a_directory() {
    let (server, pod) = (Server::start(), Pod::new());
    for model in ["a", "b"] {
        let file = format!("repository/{model}/1/model.onnx");
        let url = server.on(
            &format!("/{model}.tar"),
            vec![Answer::Body(archive("-c", &[(&file, model)]))],
        );
        pod.succeeds(TritonArchive, model, &url);
    }
    let content = pod.content();
    assert_eq!(
        (
            &*content["repository/a/1/model.onnx"],
            &*content["repository/b/1/model.onnx"]
        ),
        ("a", "b")
    );
}

#[test]
fn half_an_archive_leaves_nothing() {
    let (server, pod) = (Server::start(), Pod::new());
    let big = "0123456789abcdef".repeat(20_000);
    let repository: &[(&str, &str)] = &[("a/1/model.onnx", &big), ("b/1/model.onnx", &big)];
    let plain = archive("-c", repository);
    let packed = archive("-cz", repository);
    let whole_and_cut_off = Answer::Truncated(plain.clone());
    for (path, answer) in [
        ("/half.tar", Answer::Truncated(plain[..plain.len() / 2].into())),
        ("/cut-off-after-its-end.tar", whole_and_cut_off),
        ("/half.tar.gz", Answer::Truncated(packed[..packed.len() / 2].into())),
        (
            "/half-but-well-sent.tar.gz",
            Answer::Body(packed[..packed.len() / 2].into()),
        ),
        ("/half-but-well-sent.tar", Answer::Body(plain[..plain.len() / 3].into())),
        ("/no-archive.tar", Answer::Body(b"<html>".repeat(1000))),
        ("/empty.tar", Answer::Body(archive("-c", &[]))),
    ] {
        pod.fails(TritonArchive, "m", &server.on(path, vec![answer]));
        assert_eq!(pod.content(), files([]), "{path}");
    }
    pod.succeeds(TritonArchive, "m", &server.on("/half.tar", vec![Answer::Body(plain)]));
    assert_eq!(pod.content()["b/1/model.onnx"], big);
}

/// A pod that is deleted while it downloads goes at once, and leaves no half file on a volume that outlives it.
#[test]
fn a_deleted_pod_ends_its_download() {
    let (server, pod) = (Server::start(), Pod::new());
    let url = server.on("/m", vec![Answer::Stalls]);
    let child = pod.start(LocalAi, "m", &url);
    let started = Instant::now();
    while !pod.models().join(".berth-part-pod-0.keep").exists() {
        assert!(started.elapsed() < Duration::from_secs(20), "no download began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    assert!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
    assert!(asked.elapsed() < Duration::from_secs(20));
    assert_eq!(pod.content(), files([]));
}

#[test]
fn configuration_files_are_copied() {
    let pod = Pod::new();
    let configs = tempfile::tempdir().unwrap();
    let run = || {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &LocalAiConfigs.text()])
            .env("BERTH_CONFIGS_DIR", configs.path());
        shell.env("BERTH_MODELS_DIR", pod.models()).output().unwrap()
    };
    assert!(!run().status.success(), "nothing is mounted");
    // As kubelet mounts a projected volume.
    std::fs::create_dir_all(configs.path().join("..data/engine")).unwrap();
    std::fs::write(configs.path().join("..data/engine/a-base.yaml"), "name: a").unwrap();
    std::os::unix::fs::symlink("..data/engine", configs.path().join("engine")).unwrap();
    for _ in 0..2 {
        let output = run();
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(pod.content(), files([("a-base.yaml", "name: a")]));
}
