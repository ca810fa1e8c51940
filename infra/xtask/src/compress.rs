//! Gzips the built pages, once and as well as it goes, for the server to choose from: `x.js.gz` beside `x.js`.
//!
//! By Zopfli, which Node does not have: any browser unpacks what it makes, and scripts and module are 3 to 5 % smaller
//! than by zlib's best. It takes three seconds, even hardly optimised. Brotli stays with `player/web/build.mjs`: Node has
//! the encoder of Brotli's makers, and what the `brotli` crate writes is as large to about a tenth of a percent. Without
//! this step browsers that do not take Brotli get the files as they are.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use zopfli::{Format, Options};

use crate::process::say;

/// What the server embeds. The pages themselves come last: by one of them it is seen that nothing is missing.
const FOLDERS: [&str; 2] = ["assets", "."];

/// Writes `x.gz` for each file `x` in the pages' folder that gets a tenth smaller.
pub(crate) fn gzip_pages(dist: &Path) -> Result<()> {
    say("gzip the pages");
    for folder in FOLDERS.map(|folder| dist.join(folder)) {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            let is_compressed = path.extension().is_some_and(|ending| ending == "br" || ending == "gz");
            if path.is_file() && !is_compressed {
                gzip_file(&path).with_context(|| format!("gzip {}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn gzip_file(path: &Path) -> Result<()> {
    let contents = fs::read(path)?;
    let mut compressed = Vec::new();
    // More than its 15 iterations gain less than a thousandth.
    zopfli::compress(Options::default(), Format::Gzip, &contents[..], &mut compressed)?;
    if compressed.len() * 10 < contents.len() * 9 {
        // Appended: `with_extension` would replace the file's own.
        let mut name = path.as_os_str().to_owned();
        name.push(".gz");
        fs::write(name, compressed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn gzipped_files_hold_what_was_there_and_small_ones_are_left_alone() {
        let dist = std::env::temp_dir().join(format!("shoal-gzip-{}", std::process::id()));
        fs::create_dir_all(dist.join("assets")).unwrap();
        fs::create_dir_all(dist.join("types")).unwrap();
        let page = b"<p>shoal</p>".repeat(100);
        let script: String = (0..1_000).map(|line| format!("f({});\n", line * line % 991)).collect();
        let files: [(&str, &[u8]); 5] = [
            ("index.html", &page),
            ("assets/a.js", script.as_bytes()),
            ("assets/tiny.js", b"import './a.js'"),
            ("assets/a.js.br", &page),
            ("types/a.d.ts", &page),
        ];
        for (name, contents) in files {
            fs::write(dist.join(name), contents).unwrap();
        }
        gzip_pages(&dist).unwrap();
        let gzipped: BTreeSet<&str> = files
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| dist.join(format!("{name}.gz")).is_file())
            .collect();
        assert_eq!(gzipped, BTreeSet::from(["index.html", "assets/a.js"]));
        for (name, contents) in files.iter().filter(|(name, _)| gzipped.contains(name)) {
            let compressed = fs::read(dist.join(format!("{name}.gz"))).unwrap();
            let mut unpacked = Vec::new();
            GzDecoder::new(&compressed[..]).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == *contents, "{name} is another file after unpacking");
            assert!(compressed.len() * 10 < contents.len() * 9, "{name}");
        }
        fs::remove_dir_all(&dist).unwrap();
    }
}
