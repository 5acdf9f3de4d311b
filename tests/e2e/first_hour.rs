//! Runs docs/first-hour.md as a newcomer would: every `sh` block, in order, in one shell.
//!
//! * A block that follows `<!-- the test does instead: COMMANDS (why) -->` is replaced by COMMANDS.
//! * After `<!-- ends with N -->` the block's last command must end with N. In all other blocks a
//!   command that fails is the end.
//! * A `text` block holds lines that the block before it must say, in this order; `...` stands for
//!   anything within a line.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{alone, free_ports, images, install, processes_of};

struct Step {
    line: usize,
    commands: String,
    ends_with: i32,
    /// Lines that it must say.
    says: Vec<String>,
}

/// The longest that the whole hour may take here.
const PATIENCE_S: &str = "1500";

fn steps(markdown: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = markdown.lines().enumerate();
    let mut instead: Option<String> = None;
    let mut ends_with = 0;
    while let Some((number, line)) = lines.next() {
        if let Some(comment) = line.strip_prefix("<!-- ") {
            let mut comment = comment.to_owned();
            while !comment.contains("-->") {
                let (_, more) = lines.next().expect("a comment ends");
                comment.push('\n');
                comment.push_str(more);
            }
            let comment = comment.split("-->").next().expect("text");
            if let Some(commands) = comment.strip_prefix("the test does instead: ") {
                instead = commands.lines().next().map(str::to_owned);
                assert!(comment.contains('('), "line {}: say why", number + 1);
            } else if let Some(code) = comment.trim().strip_prefix("ends with ") {
                ends_with = code.parse().expect("an exit code");
            } else {
                panic!("line {}: a comment that is not understood", number + 1);
            }
        } else if let Some(kind) = line.strip_prefix("```") {
            let body: Vec<&str> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| *line != "```")
                .collect();
            match kind {
                "sh" => steps.push(Step {
                    line: number + 1,
                    commands: instead.take().unwrap_or_else(|| body.join("\n")),
                    ends_with: std::mem::take(&mut ends_with),
                    says: Vec::new(),
                }),
                "text" => {
                    let step = steps.last_mut().expect("text stands below commands");
                    assert!(step.says.is_empty(), "line {}: two texts", number + 1);
                    step.says = body.into_iter().map(str::to_owned).collect();
                }
                other => panic!("line {}: a block of {other:?}", number + 1),
            }
        }
    }
    steps
}

/// One script: a mark before each block, so that what it says can be told from the next.
fn script(steps: &[Step]) -> String {
    let mut script = "set -euo pipefail\n".to_owned();
    for (n, step) in steps.iter().enumerate() {
        let commands = &step.commands;
        writeln!(script, "echo '@@ {n}'").expect("written");
        if step.ends_with == 0 {
            writeln!(script, "{commands}").expect("written");
        } else {
            writeln!(
                script,
                "code=0\n{commands} || code=$?\n[ $code = {} ]",
                step.ends_with
            )
            .expect("written");
        }
    }
    script.push_str("echo '@@ end'\n");
    script
}

/// Columns are as wide as their values.
fn narrow(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn fits(pattern: &str, line: &str) -> bool {
    let (pattern, line) = (narrow(pattern), narrow(line));
    let mut parts = pattern.split("...").map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let open_end = pattern.ends_with("...");
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    open_end || rest.is_empty()
}

/// The first line of the document that was not said.
fn unsaid<'a>(says: &'a [String], output: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    says.iter()
        .filter(|line| *line != "...")
        .find(|pattern| !lines.any(|line| fits(pattern, line)))
        .map(String::as_str)
}

/// Takes the cluster down also when the test fails.
struct Down<'a>(&'a Path, &'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let program = self.0.join("stokehold");
        let _ = Command::new(program)
            .args(["down", "--data"])
            .arg(self.1)
            .output();
    }
}

#[test]
fn every_command_of_the_first_hour_does_what_the_document_says() {
    let _alone = alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = root.canonicalize().expect("the checkout");
    let markdown = std::fs::read_to_string(root.join("docs/first-hour.md")).expect("document");
    let steps = steps(&markdown);
    assert!(steps.len() > 15, "{} blocks", steps.len());

    let base = tempfile::Builder::new()
        .prefix("shk")
        .tempdir()
        .expect("folder");
    let bin = install(base.path());
    let data = base.path().join("cluster");
    let checkout = base.path().join("checkout");
    let home = base.path().join("home");
    for folder in [&home, &checkout.join("target/images")] {
        std::fs::create_dir_all(folder).expect("folder");
    }
    std::os::unix::fs::symlink(root.join("tests"), checkout.join("tests")).expect("link");
    let image = images("runtime-mlflow");
    let linked = checkout.join("target/images/runtime-mlflow.oci.tar");
    std::os::unix::fs::symlink(image, linked).expect("link");
    let train = root.join("tests/e2e/train.sh");
    std::os::unix::fs::symlink(train, bin.join("train")).expect("link");

    let _down = Down(&bin, &data);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("timeout");
    let file = base.path().join("hour.sh");
    std::fs::write(&file, script(&steps)).expect("script");
    command
        .args([PATIENCE_S, "bash", "-c", "exec bash \"$0\" 2>&1"])
        .arg(&file);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STOKEHOLD_") || name == "SUDO_USER" {
            command.env_remove(name);
        }
    }
    let output = command
        .current_dir(&checkout)
        .env("HOME", &home)
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("NO_COLOR", "1")
        .env("STOKEHOLD_DATA", &data)
        .env("STOKEHOLD_PORT_BASE", free_ports().to_string())
        .env_remove("XDG_CONFIG_HOME")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = said.split("@@ ").skip(1);
    let mut wrong = String::new();
    for step in &steps {
        let part = parts.next().unwrap_or("nothing: it was not reached");
        if let Some(line) = unsaid(&step.says, part) {
            let number = step.line;
            writeln!(
                wrong,
                "block of line {number} did not say {line:?} but\n{part}"
            )
            .expect("written");
        }
    }
    assert!(wrong.is_empty(), "docs/first-hour.md: {wrong}");
    assert!(output.status.success(), "{}", output.status);
    let left = processes_of(&data);
    assert!(left.is_empty(), "processes are left: {left:?}");
    assert!(!data.exists(), "{} is left", data.display());
}

#[test]
fn dots_stand_for_anything_within_a_line_and_columns_may_be_wider() {
    assert!(fits("iris ... ready ...", "iris-1   iris/1  ready"));
    assert!(fits("... ready", "a  is ready"));
    assert!(fits("a b", "a     b"));
    assert!(!fits("a b", "a b c"));
    assert!(!fits("ready ...", "not ready"));
    let says = ["one".to_owned(), "...".to_owned(), "two".to_owned()];
    assert_eq!(unsaid(&says, "one\nsomething\ntwo\n"), None);
    assert_eq!(unsaid(&says, "two\none\n"), Some("two"));
}
