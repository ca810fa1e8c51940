//! Runs other programs, with one progress line for each and their output where it helps.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// How many lines of a failed quiet step are shown; the rest is in its log file.
const FAILURE_LINES_SHOWN: usize = 60;

/// Says what is being done.
pub(crate) fn say(message: &str) {
    eprintln!("==> {message}");
}

/// Runs a program that reports its own progress.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<()> {
    say(title);
    let status = command.stdin(Stdio::null()).status().with_context(|| start_error(command))?;
    if !status.success() {
        bail!("{title}: `{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a program whose output matters only when it fails.
pub(crate) fn run_quietly(workspace: &Workspace, title: &str, command: &mut Command) -> Result<()> {
    say(title);
    let name: String = title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let log = workspace.memory(&format!("logs/{}.log", &name[..name.len().min(60)]))?;
    let begin = Instant::now();
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let errors = output.try_clone().context("share the log file")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .status()
        .with_context(|| start_error(command))?;
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(FAILURE_LINES_SHOWN)..] {
            eprintln!("    {line}");
        }
        bail!("{title}: `{}` failed ({status}); all of its output: {}", shown(command), log.display());
    }
    let seconds = begin.elapsed().as_secs();
    if seconds >= 5 {
        eprintln!("    {seconds} s");
    }
    Ok(())
}

/// Whether a program runs and ends well; for looking whether something is there.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What a program prints, if it runs and ends well.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where a program lies, by the search path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

fn start_error(command: &Command) -> String {
    format!("start `{}`", command.get_program().to_string_lossy())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
