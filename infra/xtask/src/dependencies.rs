//! Who may import whom. The direction of dependencies is what keeps the swarm core pure and the services apart, so
//! a machine watches it: `cargo xtask check` and a test.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{output, say};
use crate::workspace::Workspace;

/// Each of our crates with those of ours that it may import. The tests may import everything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("shoal-credentials", &[]),
    ("shoal-ingest", &["shoal-segmenter", "shoal-credentials"]),
    ("shoal-publisher", &[]),
    ("shoal-segmenter", &["shoal-playlist", "shoal-digest", "shoal-credentials"]),
    ("shoal-digest", &[]),
    ("shoal-playlist", &[]),
    ("shoal-tracker", &["shoal-tracker-protocol", "shoal-credentials"]),
    ("shoal-tracker-protocol", &[]),
    ("shoal-player", &["shoal-swarm", "shoal-playlist", "shoal-tracker-protocol", "shoal-digest"]),
    ("shoal-swarm", &["shoal-digest"]),
    ("shoal-swarm-wasm", &["shoal-swarm", "shoal-digest"]),
    ("shoal-verify-wasm", &["shoal-digest"]),
    (
        "shoal",
        &[
            "shoal-credentials",
            "shoal-ingest",
            "shoal-segmenter",
            "shoal-tracker",
            "shoal-player",
            "shoal-publisher",
            "shoal-playlist",
            "shoal-digest",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that decide and describe: no runtime, socket, clock or randomness of their own, at any depth.
const PURE: &[&str] = &["shoal-digest", "shoal-playlist", "shoal-tracker-protocol", "shoal-swarm"];

/// What would bring those in.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "socket2",
    "async-std",
    "smol",
    "hyper",
    "reqwest",
    "getrandom",
    "rand",
    "fastrand",
    "chrono",
    "time",
    "instant",
    "web-time",
    "js-sys",
    "web-sys",
];

/// Fails with all violations.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    say("direction of dependencies");
    let mut cargo = workspace.cargo();
    let text =
        output(cargo.args(["metadata", "--locked", "--format-version", "1"])).context("cargo metadata")?;
    let graph = Graph::read(&serde_json::from_str(&text).context("read cargo metadata")?)?;
    let violations = violations(&graph);
    if !violations.is_empty() {
        bail!("dependencies point the wrong way:\n  {}", violations.join("\n  "));
    }
    Ok(())
}

/// Normal dependencies by name; build and test dependencies are left out.
#[derive(Debug, Default)]
struct Graph {
    ours: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read(metadata: &Value) -> Result<Self> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let name = |id: &Value| names.get(&text(id)).cloned().context("a package id without a package");
        let mut graph = Self::default();
        for id in list(&metadata["workspace_members"]) {
            graph.ours.insert(name(&id)?);
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let edges = graph.edges.entry(name(&node["id"])?).or_default();
            for dependency in list(&node["deps"]) {
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    edges.insert(name(&dependency["pkg"])?);
                }
            }
        }
        Ok(graph)
    }

    fn of(&self, package: &str) -> impl Iterator<Item = &str> {
        self.edges.get(package).into_iter().flatten().map(String::as_str)
    }

    /// Everything below a package, with the way that leads there.
    fn below(&self, package: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![(package.to_owned(), package.to_owned())];
        while let Some((name, way)) = open.pop() {
            // Metadata unites the features of all members, and another member asks rand_core for the system's
            // randomness; the pure crates use its traits only.
            if name == "rand_core" {
                continue;
            }
            for next in self.of(&name) {
                if !found.contains_key(next) {
                    let way = format!("{way} -> {next}");
                    found.insert(next.to_owned(), way.clone());
                    open.push((next.to_owned(), way));
                }
            }
        }
        found
    }
}

fn violations(graph: &Graph) -> Vec<String> {
    let mut violations = Vec::new();
    for ours in &graph.ours {
        // Crates below `tests` are named for it and see everything.
        if ours == "shoal-tests" || ours == "shoal-sim" {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| name == ours) else {
            violations.push(format!("{ours} is not in the list of infra/xtask/src/dependencies.rs"));
            continue;
        };
        for dependency in graph.of(ours).filter(|name| graph.ours.contains(*name)) {
            if !allowed.contains(&dependency) {
                violations.push(format!("{ours} must not import {dependency}"));
            }
        }
    }
    for pure in PURE {
        let below = graph.below(pure);
        for (name, way) in IMPURE.iter().filter_map(|impure| below.get_key_value(*impure)) {
            violations.push(format!("{pure} must not reach {name}: {way}"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        for (from, to) in edges {
            if from.starts_with("shoal") {
                graph.ours.insert((*from).to_owned());
            }
            graph.edges.insert((*from).to_owned(), to.iter().map(|name| (*name).to_owned()).collect());
        }
        graph
    }

    #[test]
    fn this_checkout_points_the_right_way() {
        check(&Workspace::find().unwrap()).unwrap();
    }

    #[test]
    fn segmenter_that_imports_the_tracker_is_found() {
        let graph = graph(&[("shoal-segmenter", &["shoal-digest", "shoal-tracker"]), ("shoal-tracker", &[])]);
        assert_eq!(violations(&graph), ["shoal-segmenter must not import shoal-tracker"]);
    }

    #[test]
    fn runtime_far_below_the_swarm_core_is_found() {
        let graph = graph(&[("shoal-swarm", &["helper"]), ("helper", &["tokio"]), ("tokio", &[])]);
        assert_eq!(violations(&graph), ["shoal-swarm must not reach tokio: shoal-swarm -> helper -> tokio"]);
    }

    #[test]
    fn crate_that_nobody_placed_is_found() {
        let graph = graph(&[("shoal-new", &[])]);
        assert_eq!(violations(&graph), ["shoal-new is not in the list of infra/xtask/src/dependencies.rs"]);
    }
}
