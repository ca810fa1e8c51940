//! Skips a step whose inputs have not changed since it last went well.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Folders that hold products, never inputs.
const PRODUCTS: &[&str] = &["node_modules", "dist", "target", "coverage", "test-results"];

/// A digest of files' paths and contents.
pub(crate) fn fingerprint(inputs: &[PathBuf], extra: &str) -> Result<String> {
    let mut files = Vec::new();
    for input in inputs {
        collect(input, &mut files).with_context(|| format!("read {}", input.display()))?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    extra.hash(&mut hasher);
    for file in files {
        file.hash(&mut hasher);
        fs::read(&file).with_context(|| format!("read {}", file.display()))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Whether the step that wrote `stamp` last ran on the same inputs.
pub(crate) fn is_current(stamp: &Path, fingerprint: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|found| found == fingerprint)
}

/// Remembers that a step went well.
pub(crate) fn write(stamp: &Path, fingerprint: &str) -> Result<()> {
    fs::write(stamp, fingerprint).with_context(|| format!("write {}", stamp.display()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_dir() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if PRODUCTS.contains(&name.as_ref()) {
            return Ok(());
        }
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else if path.is_file() {
        files.push(path.to_path_buf());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_content_changes_the_fingerprint_and_products_do_not() {
        let dir = std::env::temp_dir().join(format!("shoal-stamp-{}", std::process::id()));
        fs::create_dir_all(dir.join("node_modules")).unwrap();
        fs::write(dir.join("a"), "1").unwrap();
        let inputs = [dir.clone()];
        let first = fingerprint(&inputs, "").unwrap();
        fs::write(dir.join("node_modules/b"), "x").unwrap();
        assert_eq!(fingerprint(&inputs, "").unwrap(), first);
        assert_ne!(fingerprint(&inputs, "another node").unwrap(), first);
        fs::write(dir.join("a"), "2").unwrap();
        assert_ne!(fingerprint(&inputs, "").unwrap(), first);
        fs::remove_dir_all(&dir).unwrap();
    }
}
