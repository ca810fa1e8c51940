//! Links in our documents lead somewhere: to a file of the checkout, if they are not addresses of the web.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::process::{output, say};
use crate::workspace::Workspace;

/// Fails with all links that lead nowhere.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    say("links in documents");
    let mut git = std::process::Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"])
        .current_dir(workspace.path("."));
    // Without git (a source archive) there is nothing to compare with.
    let Some(list) = output(&mut git) else { return Ok(()) };
    let mut broken = Vec::new();
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let path = workspace.path(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
        for link in links(&text) {
            if leads_nowhere(&path, link) {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    if !broken.is_empty() {
        bail!("links lead nowhere:\n  {}", broken.join("\n  "));
    }
    Ok(())
}

/// The targets of a document's links, code blocks left out.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        // Every second piece between backticks is code.
        for (_, prose) in line.split('`').enumerate().filter(|(index, _)| index % 2 == 0) {
            for link in prose.split("](").skip(1) {
                links.extend(link.split(')').next());
            }
        }
    }
    links
}

fn leads_nowhere(document: &Path, link: &str) -> bool {
    let is_web = link.contains("://") || link.starts_with("mailto:");
    let target = link.split('#').next().unwrap_or_default();
    if is_web || target.is_empty() {
        return false;
    }
    let folder = document.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    !folder.join(target).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_this_checkout_lead_somewhere() {
        check(&Workspace::find().unwrap()).unwrap();
    }

    #[test]
    fn code_holds_no_links() {
        let text = "see [a](b.md) and [c](d.md#e)\n```\n[x](y)\n```\n`[m](n)` [o](p)";
        assert_eq!(links(text), ["b.md", "d.md#e", "p"]);
    }

    #[test]
    fn link_in_a_line_with_code_in_its_text_is_found() {
        assert_eq!(links("[`a`](b)"), ["b"]);
    }

    #[test]
    fn missing_file_leads_nowhere_and_the_web_is_not_asked() {
        let document = Workspace::find().unwrap().path("README.md");
        assert!(leads_nowhere(&document, "no-such-file.md"));
        for link in ["LICENSE", "README.md#licence", "#licence", "https://example.invalid/x"] {
            assert!(!leads_nowhere(&document, link), "{link}");
        }
    }
}
