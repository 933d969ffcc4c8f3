//! The script, run for real: by the system's tools, and by those of busybox, which the image has, where busybox is installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::server::{Answer, Server};
use super::{Download, SCRIPT};

/// What runs the script.
struct Tools {
    shell: PathBuf,
    /// Folder that is the whole of PATH; absent: the system's.
    path: Option<TempDir>,
}

/// Runs a test with each set of tools that is there.
fn with_all_tools(test: impl Fn(&Tools)) {
    test(&Tools {
        shell: "sh".into(),
        path: None,
    });
    let Some(busybox) = find("busybox") else { return };
    let folder = tempfile::tempdir().unwrap();
    let applets = Command::new(&busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        symlink(&busybox, folder.path().join(applet)).unwrap();
    }
    symlink(find("curl").expect("the tests need curl"), folder.path().join("curl")).unwrap();
    test(&Tools {
        shell: folder.path().join("sh"),
        path: Some(folder),
    });
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|p| p.is_file())
}

/// The volume, which outlives tries.
struct Volume(TempDir);

/// How a try ended.
#[derive(Debug)]
struct Outcome {
    ok: bool,
    said: String,
}

impl Volume {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, tools: &Tools, download: &Download) -> Outcome {
        self.run_with(tools, download, "", &[])
    }

    /// `before` is shell that goes before the script.
    fn run_with(&self, tools: &Tools, download: &Download, before: &str, more: &[(&str, &str)]) -> Outcome {
        let mut command = Command::new(&tools.shell);
        command.arg("-c").arg(format!("{before}\n{SCRIPT}"));
        // As in a container: nothing of this process, and no proxy.
        command.env_clear().envs(download.env());
        command
            .env("MODEL_DIR", self.0.path())
            .env("MODEL_PAUSE", "0")
            .envs(more.iter().copied());
        match &tools.path {
            Some(folder) => command.env("PATH", folder.path()),
            None => command.env("PATH", std::env::var_os("PATH").unwrap()),
        };
        let output = command.output().unwrap();
        Outcome {
            ok: output.status.success(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Files that a server could read, by their paths, with their contents.
    fn served(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        collect(self.0.path(), self.0.path(), &mut found);
        found.sort();
        found
    }

    fn paths(&self) -> Vec<String> {
        self.served().into_iter().map(|(path, _)| path).collect()
    }
}

fn collect(root: &Path, at: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with(".berth") {
            // No server looks there.
        } else if path.is_dir() {
            collect(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read(&path).unwrap()));
        }
    }
}

/// A plain file from this address.
fn file(url: impl Into<String>, name: &str) -> Download {
    Download {
        url: url.into(),
        name: "m".into(),
        file: name.into(),
        source: "first".into(),
        ..Download::default()
    }
}

/// A SavedModel from this address.
fn saved_model(url: impl Into<String>) -> Download {
    Download {
        unpack: true,
        marker: "saved_model.pb",
        ..file(url, "4")
    }
}

/// More than one packet.
fn big() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// A tar.gz of these files; a target makes a link.
fn archive(files: &[(&str, &str)], links: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    for (name, text) in files {
        let path = content.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    for (name, target) in links {
        symlink(target, content.join(name)).unwrap();
    }
    let made = folder.path().join("made.tar.gz");
    let status = Command::new("tar")
        .arg("-czf")
        .arg(&made)
        .arg("-C")
        .arg(&content)
        .arg(".")
        .status();
    assert!(status.unwrap().success());
    fs::read(made).unwrap()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn refused(outcome: &Outcome, volume: &Volume, words: &str) {
    assert!(!outcome.ok, "{outcome:?}");
    assert!(outcome.said.contains(words), "{}", outcome.said);
    assert_eq!(volume.paths(), Vec::<String>::new());
}

#[test]
fn a_plain_file_is_put_where_its_server_reads_it() {
    with_all_tools(|tools| {
        let server = Server::start(|_, r| Answer::file(r, b"\x89HDF", "\"a\""));
        for name in ["tf_model.h5", "model.onnx"] {
            let volume = Volume::new();
            let outcome = volume.run(tools, &file(format!("{}/x?y=z", server.address), name));
            assert!(outcome.ok, "{}", outcome.said);
            assert_eq!(volume.served(), [(format!("m/1/{name}"), b"\x89HDF".to_vec())]);
        }
    });
}

#[test]
fn a_saved_model_is_unpacked_to_what_tensorflow_serving_reads() {
    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);
    let cases: &[Case] = &[
        // As TensorFlow Hub has them.
        (
            &[("saved_model.pb", "p"), ("variables/variables.index", "i")],
            &["m/1/saved_model.pb", "m/1/variables/variables.index"],
        ),
        (
            &[
                ("my model's \"best\"/saved_model.pb", "p"),
                ("my model's \"best\"/assets/a b", "i"),
            ],
            &["m/1/assets/a b", "m/1/saved_model.pb"],
        ),
        (
            &[
                ("models/net/3/saved_model.pb", "p"),
                ("models/net/12/saved_model.pb", "q"),
            ],
            &["m/12/saved_model.pb", "m/3/saved_model.pb"],
        ),
    ];
    with_all_tools(|tools| {
        for (files, want) in cases {
            let made = archive(files, &[]);
            let server = Server::start(move |_, r| Answer::file(r, &made, "\"a\""));
            let volume = Volume::new();
            // Nothing in the address says that it is an archive.
            let outcome = volume.run(tools, &saved_model(format!("{}/4?format=compressed", server.address)));
            assert!(outcome.ok, "{}", outcome.said);
            assert_eq!(volume.paths(), *want);
        }
    });
}

#[test]
fn of_an_archive_the_file_gets_the_name_that_its_server_wants() {
    with_all_tools(|tools| {
        let made = archive(&[("net/best one.onnx", "o"), ("net/weights.bin", "w")], &[]);
        let server = Server::start(move |_, r| Answer::file(r, &made, "\"a\""));
        let volume = Volume::new();
        let download = Download {
            unpack: true,
            marker: "*.onnx",
            rename: Some("model.onnx"),
            ..file(&server.address, "ignored")
        };
        let outcome = volume.run(tools, &download);
        assert!(outcome.ok, "{}", outcome.said);
        assert_eq!(volume.paths(), ["m/1/model.onnx", "m/1/weights.bin"]);
    });
}

#[test]
fn an_archive_that_holds_no_model_or_reaches_out_is_refused() {
    with_all_tools(|tools| {
        for (made, words) in [
            (archive(&[("readme", "r")], &[]), "no saved_model.pb"),
            (
                archive(&[("a/saved_model.pb", "r"), ("b/saved_model.pb", "r")], &[]),
                "several models",
            ),
            (archive(&[("saved_model.pb", "r")], &[("assets", "/etc")]), "lead out"),
            (
                archive(&[("saved_model.pb", "r")], &[("assets", "../../../etc")]),
                "lead out",
            ),
            (b"\x1f\x8bnot gzip at all".to_vec(), "cannot be unpacked"),
        ] {
            // Its author repairs it under the same URL.
            let repaired = archive(&[("saved_model.pb", "r")], &[]);
            let server = Server::start(move |n, r| match n {
                1 => Answer::file(r, &made, "\"a\""),
                _ => Answer::file(r, &repaired, "\"b\""),
            });
            let volume = Volume::new();
            refused(&volume.run(tools, &saved_model(&server.address)), &volume, words);
            let again = volume.run(tools, &saved_model(&server.address));
            assert!(again.ok, "{words}: {}", again.said);
        }
    });
}

#[test]
fn redirects_are_followed() {
    with_all_tools(|tools| {
        let server = Server::start(|_, r| match r.path.as_str() {
            "/model" => Answer::status(302).with("Location", "/there").with("ETag", "\"other\""),
            _ => Answer::file(r, b"data", "\"a\""),
        });
        let volume = Volume::new();
        let outcome = volume.run(tools, &file(format!("{}/model", server.address), "f"));
        assert!(outcome.ok, "{}", outcome.said);
        assert_eq!(volume.served(), [("m/1/f".to_owned(), b"data".to_vec())]);
    });
}

#[test]
fn a_body_that_breaks_off_is_gone_on_with() {
    with_all_tools(|tools| {
        let data = big();
        let served = data.clone();
        let server = Server::start(move |n, r| {
            let answer = Answer::file(r, &served, "\"a\"");
            if n < 3 { answer.cut_after(100_000) } else { answer }
        });
        let volume = Volume::new();
        let outcome = volume.run(tools, &file(&server.address, "f"));
        assert!(outcome.ok, "{}", outcome.said);
        assert_eq!(hash(&volume.served()[0].1), hash(&data));
        let ranges: Vec<_> = server.seen().iter().map(|r| r.range).collect();
        assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
        assert_eq!(server.seen()[1].if_range.as_deref(), Some("\"a\""));
    });
}

#[test]
fn editions_of_a_file_are_not_mixed() {
    with_all_tools(|tools| {
        let (old, new) = (big(), vec![7; 300_000]);
        let fresh = new.clone();
        let server = Server::start(move |n, r| match n {
            1 => Answer::file(r, &old, "\"old\"").cut_after(100_000),
            _ => Answer::file(r, &fresh, "\"new\""),
        });
        let volume = Volume::new();
        let outcome = volume.run(tools, &file(&server.address, "f"));
        assert!(outcome.ok, "{}", outcome.said);
        assert_eq!(hash(&volume.served()[0].1), hash(&new));
    });
}

#[test]
fn without_a_validator_it_starts_anew_rather_than_mixing() {
    with_all_tools(|tools| {
        let data = big();
        let served = data.clone();
        let server = Server::start(move |n, r| {
            let mut answer = Answer::file(r, &served, "\"a\"");
            answer.headers.retain(|(name, _)| *name != "ETag");
            if n < 2 { answer.cut_after(100_000) } else { answer }
        });
        let volume = Volume::new();
        assert!(volume.run(tools, &file(&server.address, "f")).ok);
        assert_eq!(hash(&volume.served()[0].1), hash(&data));
        assert_eq!(server.seen()[1].range, None);
    });
}

#[test]
fn a_body_that_never_comes_whole_is_a_failure_and_the_next_try_goes_on() {
    with_all_tools(|tools| {
        let data = big();
        let served = data.clone();
        let server = Server::start(move |n, r| {
            let answer = Answer::file(r, &served, "\"a\"");
            if n <= 5 { answer.cut_after(1000) } else { answer }
        });
        let volume = Volume::new();
        let download = file(&server.address, "f");
        refused(&volume.run(tools, &download), &volume, "does not succeed");
        assert_eq!(server.seen().len(), 5);
        assert!(volume.run(tools, &download).ok);
        assert_eq!(server.seen()[5].range, Some(5000));
        assert_eq!(hash(&volume.served()[0].1), hash(&data));
    });
}

#[test]
fn what_another_source_left_is_not_gone_on_with() {
    with_all_tools(|tools| {
        let data = big();
        let served = data.clone();
        let server = Server::start(move |n, r| {
            let answer = Answer::file(r, &served, "\"a\"");
            if n <= 1 { answer.cut_after(1000) } else { answer }
        });
        let volume = Volume::new();
        let download = file(&server.address, "f");
        let once = [("MODEL_TRIES", "1")];
        assert!(!volume.run_with(tools, &download, "", &once).ok);
        let other = Download {
            source: "second".into(),
            ..download
        };
        assert!(volume.run(tools, &other).ok);
        assert_eq!(server.seen()[1].range, None);
    });
}

#[test]
fn a_volume_that_holds_the_model_is_left_as_it_is_and_another_source_replaces_it() {
    with_all_tools(|tools| {
        let server = Server::start(|n, r| Answer::file(r, format!("edition {n}").as_bytes(), "\"a\""));
        let volume = Volume::new();
        let download = file(&server.address, "f");
        assert!(volume.run(tools, &download).ok);
        let again = volume.run(tools, &download);
        assert!(again.ok && again.said.contains("already"), "{again:?}");
        assert_eq!(server.seen().len(), 1);
        assert_eq!(volume.served(), [("m/1/f".to_owned(), b"edition 1".to_vec())]);
        let other = Download {
            source: "second".into(),
            ..file(&server.address, "g")
        };
        assert!(volume.run(tools, &other).ok);
        assert_eq!(volume.served(), [("m/1/g".to_owned(), b"edition 2".to_vec())]);
    });
}

#[test]
fn a_server_without_a_good_certificate_is_refused() {
    with_all_tools(|tools| {
        let (server, ca) = Server::start_tls(|_, r| Answer::file(r, b"data", "\"a\""));
        let volume = Volume::new();
        let download = file(format!("{}/m", server.address), "f");
        refused(&volume.run(tools, &download), &volume, "certificate");
        assert_eq!(server.seen().len(), 0);
        // That nothing else was wrong: with the certificate trusted it works.
        let trusted = volume.0.path().join(".ca.pem");
        fs::write(&trusted, ca).unwrap();
        let more = [("CURL_CA_BUNDLE", trusted.to_str().unwrap())];
        let outcome = volume.run_with(tools, &download, "", &more);
        assert!(outcome.ok, "{}", outcome.said);
    });
}

#[test]
fn a_redirect_from_an_encrypted_connection_to_a_plain_one_is_refused() {
    with_all_tools(|tools| {
        let plain = Server::start(|_, r| Answer::file(r, b"data", "\"a\""));
        let there = plain.address.clone();
        let (server, ca) = Server::start_tls(move |_, _| Answer::status(302).with("Location", there.clone()));
        let volume = Volume::new();
        let outside = tempfile::tempdir().unwrap();
        let trusted = outside.path().join("ca.pem");
        fs::write(&trusted, ca).unwrap();
        let more = [("CURL_CA_BUNDLE", trusted.to_str().unwrap())];
        let outcome = volume.run_with(tools, &file(&server.address, "f"), "", &more);
        refused(&outcome, &volume, "cannot be used");
        assert_eq!(plain.seen().len(), 0);
    });
}

#[test]
fn what_does_not_exist_is_not_asked_for_again() {
    with_all_tools(|tools| {
        for status in [401, 403, 404, 410] {
            let server = Server::start(move |_, _| Answer::status(status));
            let volume = Volume::new();
            let outcome = volume.run(tools, &file(&server.address, "f"));
            refused(&outcome, &volume, &format!("the server answers {status}"));
            assert_eq!(server.seen().len(), 1);
        }
    });
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    with_all_tools(|tools| {
        let server = Server::start(|n, r| match n {
            1 => Answer::status(503),
            2 => Answer::status(429),
            _ => Answer::file(r, b"data", "\"a\""),
        });
        let volume = Volume::new();
        assert!(volume.run(tools, &file(&server.address, "f")).ok);
        assert_eq!(server.seen().len(), 3);
    });
}

#[test]
fn a_full_disk_is_a_failure() {
    with_all_tools(|tools| {
        let data = big();
        let zeros = archive(&[("saved_model.pb", &"0".repeat(2_000_000))], &[]);
        assert!(zeros.len() < 100_000);
        let server = Server::start(move |_, r| match r.path.as_str() {
            "/file" => Answer::file(r, &data, "\"a\""),
            _ => Answer::file(r, &zeros, "\"b\""),
        });
        // A limit on the size of a file stands for the end of the disk: writing past it fails. In blocks of 512 bytes.
        let full = "trap '' XFSZ; ulimit -f 400";
        let volume = Volume::new();
        let outcome = volume.run_with(tools, &file(format!("{}/file", server.address), "f"), full, &[]);
        refused(&outcome, &volume, "is the volume full?");
        // Room for the archive, not for what is in it.
        let volume = Volume::new();
        let outcome = volume.run_with(tools, &saved_model(format!("{}/archive", server.address)), full, &[]);
        refused(&outcome, &volume, "cannot be unpacked");
        // More room, and the same volume: what is there of the archive is used.
        assert!(
            volume
                .run(tools, &saved_model(format!("{}/archive", server.address)))
                .ok
        );
        assert_eq!(server.seen().len(), 2);
    });
}

#[test]
fn a_volume_that_cannot_be_written_to_is_a_failure() {
    with_all_tools(|tools| {
        let volume = Volume::new();
        fs::write(volume.0.path().join(".berth"), "in the way").unwrap();
        let outcome = volume.run(tools, &file("http://127.0.0.1:1/x", "f"));
        assert!(
            !outcome.ok && outcome.said.contains("cannot be written to"),
            "{outcome:?}"
        );
    });
}

#[test]
fn the_checksum_decides() {
    with_all_tools(|tools| {
        let server = Server::start(|_, r| Answer::file(r, b"data", "\"a\""));
        let volume = Volume::new();
        let with = |sha256: String| Download {
            sha256: Some(sha256),
            ..file(&server.address, "f")
        };
        let outcome = volume.run(tools, &with(hash(b"other")));
        refused(&outcome, &volume, &format!("SHA-256 is {}", hash(b"data")));
        assert!(volume.run(tools, &with(hash(b"data"))).ok);
        assert_eq!(server.seen().len(), 2, "what did not match is not kept");
    });
}

#[test]
fn nothing_in_a_name_or_an_address_is_taken_for_shell() {
    with_all_tools(|tools| {
        let server = Server::start(|_, r| Answer::file(r, b"data", "\"a\""));
        let volume = Volume::new();
        let name = "my $(touch no) `touch no` 'model' \"x\"; touch no.h5";
        let path = "/a;touch%20no/$(touch%20no)/`touch%20no`/'x'?q=%22&touch=no|x";
        let outcome = volume.run(tools, &file(format!("{}{path}", server.address), name));
        assert!(outcome.ok, "{}", outcome.said);
        assert_eq!(volume.served(), [(format!("m/1/{name}"), b"data".to_vec())]);
        assert_eq!(server.seen()[0].path, path);
        assert!(!Path::new("no").exists());
        // Braces and brackets are no patterns either, and what looks like an option is none.
        let path = "/{a,b}[1-3]";
        assert!(
            Volume::new()
                .run(tools, &file(format!("{}{path}", server.address), "f"))
                .ok
        );
        assert_eq!(server.seen().last().unwrap().path, path);
        let outcome = Volume::new().run(tools, &file("-K/etc/passwd", "f"));
        assert!(!outcome.ok && !outcome.said.contains("root"), "{outcome:?}");
    });
}

#[test]
fn other_schemes_are_refused() {
    with_all_tools(|tools| {
        for url in ["file:///etc/passwd", "gopher://127.0.0.1/x", "s3://bucket/x"] {
            let volume = Volume::new();
            refused(&volume.run(tools, &file(url, "f")), &volume, "the URL cannot be used");
        }
    });
}

/// A server that runs as another user than the download reads what it put there.
#[test]
fn everybody_may_read_the_model() {
    use std::os::unix::fs::PermissionsExt;
    with_all_tools(|tools| {
        let made = archive(&[("variables/v", "v"), ("saved_model.pb", "p")], &[]);
        let server = Server::start(move |_, r| Answer::file(r, &made, "\"a\""));
        let volume = Volume::new();
        assert!(
            volume
                .run_with(tools, &saved_model(&server.address), "umask 077", &[])
                .ok
        );
        let mode = |path: &str| fs::metadata(volume.0.path().join(path)).unwrap().permissions().mode() & 0o777;
        for (path, want) in [("m", 0o755), ("m/1/variables", 0o755), ("m/1/saved_model.pb", 0o644)] {
            assert_eq!(mode(path) & want, want, "{path}");
        }
    });
}
