//! Files written whole or not at all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use crate::error::{Error, Result};

/// Makes a folder and those above it.
pub fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::file("create", path))
}

/// Writes a file through a temporary neighbour, so that a reader sees the old content or the new.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(Error::file("write", path))?;
    file.write_all(content).map_err(Error::file("write", path))?;
    fs::rename(&temporary, path).map_err(Error::file("write", path))
}

/// Writes a file and the folders above it, unless it has this content already.
pub fn place(path: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        folder(parent)?;
    }
    write(path, content.as_bytes(), 0o644)
}

/// Copies a file so that it appears whole.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).map_err(Error::file("read", from))?;
    if let Some(parent) = to.parent() {
        folder(parent)?;
    }
    write(to, &content, 0o755)
}

/// Makes a symbolic link; an older one of this name gives way.
pub fn link(target: impl AsRef<Path>, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        folder(parent)?;
    }
    remove(path)?;
    symlink(target, path).map_err(Error::file("create", path))
}

/// Removes a file, a link or a whole folder, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::file("remove", path)),
    }
}

/// The last lines of a text file, for messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all[from..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
