//! Puts two things into the program: the built pages (`player/web/dist`), and the documentation of the settings.
//!
//! Without the pages the program still builds; it then serves one that says how to build them. The settings'
//! documentation are the doc comments of the services' `Config` structs, so that the file which an operator reads
//! and the code cannot disagree.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where each table of the configuration file is defined: table, source file, struct.
const TABLES: &[(&str, &str, &str)] = &[
    ("http", "src/settings/tables.rs", "Http"),
    ("ingest", "../ingest/src/config.rs", "Config"),
    ("segmenter", "../segmenter/src/config.rs", "Config"),
    ("pull", "../segmenter/src/pull/config.rs", "Config"),
    ("tracker", "../tracker/src/config.rs", "Config"),
    ("keys", "src/settings/tables.rs", "Keys"),
    ("log", "src/settings/tables.rs", "Log"),
];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=build.rs");
    fs::write(out.join("pages.rs"), pages(&manifest.join("../player/web"))).expect("OUT_DIR is writable");
    fs::write(out.join("settings.rs"), settings(&manifest)).expect("OUT_DIR is writable");
}

/// A Rust expression: `(url, contents)` of each file of the pages.
fn pages(web: &Path) -> String {
    let dist = web.join("dist");
    let mut files = Vec::new();
    if dist.is_dir() {
        collect(&dist, &mut files);
        files.sort();
        // A folder's time changes with its entries, and cargo looks into folders for changed files.
        println!("cargo::rerun-if-changed={}", dist.display());
    } else {
        // Cargo would run this script on every build for a missing path; the parent's time changes when the
        // folder appears.
        println!("cargo::rerun-if-changed={}", web.display());
    }
    let mut table = String::from("&[\n");
    for file in &files {
        let url = file.strip_prefix(&dist).expect("collected below it").to_string_lossy().replace('\\', "/");
        writeln!(table, "    (\"/{url}\", include_bytes!({file:?}) as &[u8]),").expect("writing to a string");
    }
    table.push(']');
    table
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder that was just seen").flatten() {
        let path = entry.path();
        if path.is_dir() {
            // Type declarations are for npm, not for the server.
            if entry.file_name() != "types" {
                collect(&path, files);
            }
        } else {
            files.push(path);
        }
    }
}

/// A Rust expression: `(table, documentation, [(key, documentation)])` of each table.
fn settings(manifest: &Path) -> String {
    let mut out = String::from("&[\n");
    for (table, file, name) in TABLES {
        let path = manifest.join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        let source = fs::read_to_string(&path).unwrap_or_default();
        let (doc, fields) = documented_struct(&source, name);
        writeln!(out, "    ({table:?}, &{doc:?}, &{fields:?}),").expect("writing to a string");
    }
    out.push(']');
    // A slice of tuples of slices: the inner vectors' Debug form lacks the reference.
    out.replace(", [", ", &[")
}

/// The doc comments of a struct and of its fields.
fn documented_struct(source: &str, name: &str) -> (Vec<String>, Vec<(String, Vec<String>)>) {
    let mut doc = Vec::new();
    let mut lines = source.lines().map(str::trim);
    let opening = format!("pub struct {name} {{");
    for line in lines.by_ref() {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.to_owned());
        } else if line == opening {
            break;
        } else if !line.starts_with('#') {
            doc.clear();
        }
    }
    let mut fields = Vec::new();
    let mut field_doc = Vec::new();
    for line in lines {
        if let Some(text) = line.strip_prefix("///") {
            field_doc.push(text.to_owned());
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            fields.push((field.to_owned(), std::mem::take(&mut field_doc)));
        } else if line == "}" {
            break;
        }
    }
    (doc, fields)
}
