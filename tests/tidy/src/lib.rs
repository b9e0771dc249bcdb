//! The rules of the house that a compiler cannot hold; see `tests/`.

use std::path::{Path, PathBuf};

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

/// Every file git would track below `folder` whose name ends in `extension`, as (path from the root, content).
///
/// # Errors
/// When a file cannot be read.
pub fn files(folder: &str, extension: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if path.is_dir() {
                if !matches!(name.as_str(), "target" | "node_modules" | ".git") {
                    folders.push(path);
                }
            } else if name.ends_with(extension) {
                let text = std::fs::read_to_string(&path)?;
                found.push((path.strip_prefix(root())?.display().to_string(), text));
            }
        }
    }
    found.sort();
    Ok(found)
}
