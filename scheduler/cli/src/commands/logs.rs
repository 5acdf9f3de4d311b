//! `stokehold logs`: what replicas wrote.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use clap::Args;
use shared::api::LogLine;
use shared::ids::{EndpointName, EntityName, ReplicaId};

use crate::client::{Call, Client, LONG_CALL};
use crate::commands::endpoint::description_path;
use crate::commands::last_words::printable;
use crate::output::Output;
use crate::output::format::short;

const EXAMPLES: &str = "\
Examples:
  stokehold logs iris
  stokehold logs iris --follow --tail 0
  stokehold logs iris --entity iris-2 --tail 500 --output json";

/// Log lines are some 100 bytes; asking for more than is shown costs little.
const BYTES_PER_LINE: u64 = 1024;
const MAX_TAIL_BYTES: u64 = 4 << 20;

/// A line longer than this is cut by the log shim; what exceeds it is no log.
const MAX_LINE_BYTES: usize = 1 << 20;

/// When following, what comes before the first pause is the past.
const PAUSE: Duration = Duration::from_millis(400);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    name: EndpointName,
    /// Go on with what is written from now on.
    #[arg(long, short)]
    follow: bool,
    /// Only this served entity's replicas.
    #[arg(long, value_name = "NAME")]
    entity: Option<EntityName>,
    /// Only this replica (16 digits, as `describe --output json` shows them).
    #[arg(long, value_name = "ID")]
    replica: Option<ReplicaId>,
    /// How many of the last lines.
    #[arg(long, default_value_t = 200, value_name = "LINES")]
    tail: u32,
}

pub(crate) async fn run(args: &LogsArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut call = Call::get(format!("{}/logs", description_path(&args.name)));
    if let Some(entity) = &args.entity {
        call = call.query("entity", entity);
    }
    if let Some(replica) = &args.replica {
        call = call.query("replica", replica);
    }
    let tail_bytes = (u64::from(args.tail) * BYTES_PER_LINE).min(MAX_TAIL_BYTES);
    call = call.query("tail_bytes", tail_bytes);
    call = if args.follow {
        call.query("follow", true).timeout(None)
    } else {
        call.timeout(Some(LONG_CALL))
    };
    let mut lines = Lines::new(client.open(&call).await?, client);
    let mut past = VecDeque::new();
    let wait = if args.follow { PAUSE } else { LONG_CALL };
    let ended = loop {
        match tokio::time::timeout(wait, lines.next()).await {
            Err(_) => break false,
            Ok(line) => match line? {
                None => break true,
                Some(line) => keep_last(&mut past, line, args.tail as usize),
            },
        }
    };
    for line in past {
        show(&line, output)?;
    }
    if ended {
        return Ok(());
    }
    while let Some(line) = lines.next().await? {
        show(&line, output)?;
    }
    Ok(())
}

fn keep_last(past: &mut VecDeque<Bytes>, line: Bytes, most: usize) {
    past.push_back(line);
    if past.len() > most {
        past.pop_front();
    }
}

fn show(line: &[u8], output: &Output) -> anyhow::Result<()> {
    let text = String::from_utf8_lossy(line);
    if output.is_json() {
        return output.line(text);
    }
    match serde_json::from_slice::<LogLine>(line) {
        Ok(line) => output.line(plain(&line)),
        // A line of a newer server is better shown raw than hidden.
        Err(_) => output.line(text),
    }
}

fn plain(line: &LogLine) -> String {
    let (replica, message) = (short(line.replica.as_str()), printable(&line.m));
    format!("{} {replica} {message}", line.t)
}

/// The lines of an answer as they come.
pub(crate) struct Lines<'a> {
    response: reqwest::Response,
    client: &'a Client,
    rest: BytesMut,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(response: reqwest::Response, client: &'a Client) -> Self {
        Self {
            response,
            client,
            rest: BytesMut::new(),
        }
    }

    /// Cancel-safe: what was read stays in `rest`.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(line) = cut(&mut self.rest) {
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            anyhow::ensure!(
                self.rest.len() <= MAX_LINE_BYTES,
                "the server sent a line of more than {MAX_LINE_BYTES} bytes"
            );
            match self.client.chunk(&mut self.response).await? {
                Some(piece) => self.rest.extend_from_slice(&piece),
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(self.rest.split().freeze())),
            }
        }
    }
}

fn cut(rest: &mut BytesMut) -> Option<Bytes> {
    let end = rest.iter().position(|&b| b == b'\n')?;
    let line = rest.split_to(end).freeze();
    rest.advance(1);
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_network_cut_them() {
        let mut rest = BytesMut::from(&b"one\ntw"[..]);
        assert_eq!(cut(&mut rest).as_deref(), Some(&b"one"[..]));
        assert_eq!(cut(&mut rest), None);
        rest.extend_from_slice(b"o\n\n");
        assert_eq!(cut(&mut rest).as_deref(), Some(&b"two"[..]));
        assert_eq!(cut(&mut rest).as_deref(), Some(&b""[..]));
        assert_eq!(cut(&mut rest), None);
    }

    #[test]
    fn only_the_last_lines_of_the_past_are_kept() {
        let mut past = VecDeque::new();
        for n in 0..5u8 {
            keep_last(&mut past, Bytes::copy_from_slice(&[n]), 2);
        }
        assert_eq!(past, [Bytes::from_static(&[3]), Bytes::from_static(&[4])]);
        let mut none = VecDeque::new();
        keep_last(&mut none, Bytes::new(), 0);
        assert!(none.is_empty());
    }

    #[test]
    fn a_models_control_characters_do_not_reach_the_terminal() {
        let line = LogLine {
            replica: "0123456789abcdef".parse().expect("id"),
            t: "2026-11-24T07:00:00Z".into(),
            s: "stderr".into(),
            m: "a\u{1b}[2Jb\tc".into(),
            partial: false,
        };
        assert_eq!(plain(&line), "2026-11-24T07:00:00Z 01234567 a[2Jb\tc");
    }
}
