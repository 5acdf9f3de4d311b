//! The context `local` for the person who called `sudo`.
//!
//! Root writes nothing into somebody's home: a link there could lead anywhere. This program is
//! called again as that user, with what to write on standard input.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use nix::unistd::{Uid, User};

use super::CONTEXT;
use super::plan::Plan;
use crate::commands::context::{self, Adopted};

/// The user who called `sudo`; `None` when root itself did.
pub(super) fn invoking_user() -> Option<User> {
    let uid: u32 = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    (uid != 0).then(|| user(uid)).flatten()
}

fn user(uid: u32) -> Option<User> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten()
}

pub(super) fn give(plan: &Plan, to: Option<&User>) -> anyhow::Result<()> {
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    };
    let adopted = Adopted {
        server: plan.server(),
        gateway: plan.gateway(),
        ca_pem: read(&plan.layout.ca())?,
        token: read(&plan.layout.admin_token())?,
    };
    let Some(user) = to else {
        return context::adopt(CONTEXT, &adopted);
    };
    let mut command = as_user(user)?;
    command.args(["context", "adopt", CONTEXT]);
    run(command, &serde_json::to_vec(&adopted)?)
}

/// Undoes [`give`], where the context still means this server.
pub(super) fn take_back(server: &str, uid: Option<u32>) -> anyhow::Result<()> {
    let Some(uid) = uid else {
        return context::forget(CONTEXT, server);
    };
    // Somebody who is no user any more has no home to tidy.
    let Some(user) = user(uid) else { return Ok(()) };
    let mut command = as_user(&user)?;
    command.args(["context", "forget", CONTEXT, server]);
    run(command, b"")
}

fn as_user(user: &User) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .env_clear()
        .env("HOME", &user.dir)
        .current_dir("/")
        .gid(user.gid.as_raw())
        .uid(user.uid.as_raw())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Ok(command)
}

fn run(mut command: Command, input: &[u8]) -> anyhow::Result<()> {
    let mut child = command.spawn().context("start this program as that user")?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A program that ends early closes its end; its own message says why.
    let _ = stdin.write_all(input);
    drop(stdin);
    let ended = child.wait_with_output()?;
    anyhow::ensure!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr).trim()
    );
    Ok(())
}
