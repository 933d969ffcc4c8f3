//! The agent's clock, as `tests/turned-clock` has it: minutes and days go by at once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// The library, built once.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet", "--package", "berth-turned-clock"])
            .status()
            .unwrap();
        assert!(status.success(), "cargo build -p berth-turned-clock failed");
        Path::new(env!("CARGO_BIN_EXE_berth-agent")).with_file_name("libturned_clock.so")
    })
}

/// One process's clock.
pub struct Clock {
    path: PathBuf,
    /// How far it was turned.
    turned: Mutex<Duration>,
}

impl Clock {
    /// A clock that goes as the machine's. It keeps how far it was turned in the file at `path`.
    pub fn new(path: PathBuf) -> Self {
        std::fs::write(&path, 0_u64.to_ne_bytes()).unwrap();
        Self {
            path,
            turned: Mutex::default(),
        }
    }

    /// Has a program live by it that is yet to be started.
    pub fn give_to<'c>(&self, program: &'c mut Command) -> &'c mut Command {
        program.env("LD_PRELOAD", library()).env("TURNED_CLOCK", &self.path)
    }

    pub fn turn(&self, by: Duration) {
        let mut turned = self.turned.lock().unwrap();
        *turned += by;
        let nanos = u64::try_from(turned.as_nanos()).unwrap();
        // In place: the program has the file open.
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&nanos.to_ne_bytes(), 0).unwrap();
    }
}
