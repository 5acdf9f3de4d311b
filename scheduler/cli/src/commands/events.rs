//! `stokehold events`: what happened, when, to what, and why.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::Value;
use shared::api::events::{EventInfo, EventLine, EventList, Severity, Subject};
use shared::ids::{EndpointName, NodeName};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::{Call, Client, ClientError};
use crate::commands::logs::Lines;
use crate::output::Output;
use crate::output::format::{self, short};
use crate::output::table::{Field, Table, Tone};

const PATH: &str = "/api/stokehold/v1/events";

const EXAMPLES: &str = "\
Examples:
  stokehold events
  stokehold events iris --since 1h --warnings
  stokehold events --node n2 --follow
  stokehold events iris --output json | jq -r '.events[] | \"\\(.kind) \\(.cause)\"'";

/// Between two tries to reach a scheduler that went away.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EventsArgs {
    /// Only this endpoint's, also after it was deleted.
    name: Option<EndpointName>,
    /// Only this node's.
    #[arg(long, value_name = "NODE")]
    node: Option<NodeName>,
    /// Go on with what happens from now on; a scheduler that restarts is waited for.
    #[arg(long, short)]
    follow: bool,
    /// Only those of the last so long: 90s, 15m, 1h.
    #[arg(long, value_parser = crate::duration::parse, value_name = "TIME")]
    since: Option<Duration>,
    /// Only warnings.
    #[arg(long)]
    warnings: bool,
    /// How many of the last ones.
    #[arg(long, default_value_t = 100, value_name = "EVENTS")]
    limit: u32,
}

pub(crate) async fn run(args: &EventsArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut call = asked(args).query("limit", args.limit);
    if let Some(since) = args.since {
        call = call.query("within_s", since.as_secs().max(1));
    }
    if !args.follow && output.is_json() {
        return output.json(&client.call::<Value>(call).await?);
    }
    let list: EventList = client.call(call).await?;
    if !args.follow {
        return output.table(&table(&list.events, SystemTime::now()));
    }
    for event in list.events {
        show(&EventLine::Event(Box::new(event)), output)?;
    }
    follow(args, list.last_seq, client, output).await
}

fn asked<'a>(args: &EventsArgs) -> Call<'a> {
    let mut call = Call::get(PATH);
    if let Some(name) = &args.name {
        call = call.query("endpoint", name);
    }
    if let Some(node) = &args.node {
        call = call.query("node", node);
    }
    if args.warnings {
        call = call.query("warnings", true);
    }
    call
}

/// Goes on from an event's number, on as many connections as it takes.
async fn follow(
    args: &EventsArgs,
    mut seq: u64,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    let mut wait = FIRST_WAIT;
    let mut told = false;
    loop {
        let call = asked(args).query("since", seq).query("follow", true);
        let ended = match client.open(&call.timeout(None)).await {
            Ok(response) => {
                let mut lines = Lines::new(response, client);
                if std::mem::take(&mut told) {
                    output.note("connected again");
                }
                wait = FIRST_WAIT;
                loop {
                    match lines.next().await {
                        Ok(Some(line)) => seq = relay(&line, output)?.unwrap_or(seq),
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            }
            Err(error) => Some(error.into()),
        };
        if let Some(error) = ended {
            let passing = error.downcast_ref().is_some_and(ClientError::is_passing);
            if !passing {
                return Err(error);
            }
        }
        if !std::mem::replace(&mut told, true) {
            output.note("the scheduler is away; waiting for it");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Shows a line of a stream; the number after which to go on.
fn relay(line: &[u8], output: &Output) -> anyhow::Result<Option<u64>> {
    let Ok(line) = serde_json::from_slice::<EventLine>(line) else {
        // Of a newer server; better shown raw than hidden.
        output.line(String::from_utf8_lossy(line))?;
        return Ok(None);
    };
    show(&line, output)?;
    Ok(Some(match &line {
        EventLine::Event(event) => event.seq,
        EventLine::Missed { missed } => missed.up_to_seq,
    }))
}

fn show(line: &EventLine, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        return output.line(serde_json::to_string(line)?);
    }
    match line {
        EventLine::Event(event) => output.line(one_line(event)),
        EventLine::Missed { missed } => {
            output.warn(format!(
                "some events between number {} and number {} are no longer kept",
                missed.after_seq, missed.up_to_seq
            ));
            Ok(())
        }
    }
}

/// A line of a stream, whose columns cannot know what comes.
fn one_line(event: &EventInfo) -> String {
    let (severity, colour) = match event.severity {
        Severity::Normal => ("normal", ""),
        Severity::Warning => ("warning", "\u{1b}[33m"),
    };
    let reset = if colour.is_empty() { "" } else { "\u{1b}[0m" };
    format!(
        "{}  {colour}{severity:7}{reset}  {:24}  {:16}  {}",
        clock(event.unix_ms),
        object(&event.subject),
        event.kind,
        text(event)
    )
}

/// `2026-11-24T10:30:05Z`.
fn clock(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds);
    let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format::UNKNOWN.into())
}

pub(crate) fn table(events: &[EventInfo], now: SystemTime) -> Table {
    let mut table = Table::new(
        ["AGE", "SEVERITY", "OBJECT", "WHAT", "MESSAGE"],
        "no events",
    );
    for event in events {
        let severity = match event.severity {
            Severity::Normal => Field::toned("normal", Tone::Plain),
            Severity::Warning => Field::toned("warning", Tone::Waiting),
        };
        table.row([
            format::since_unix_ms(event.unix_ms, now).into(),
            severity,
            object(&event.subject).into(),
            event.kind.into(),
            text(event).into(),
        ]);
    }
    table
}

/// What it happened to, in few words.
fn object(subject: &Subject) -> String {
    match subject {
        Subject {
            endpoint: Some(endpoint),
            replica: Some(replica),
            ..
        } => format!("replica {endpoint}/{}", short(replica.as_str())),
        Subject {
            endpoint: Some(endpoint),
            entity: Some(entity),
            ..
        } => format!("entity {endpoint}/{entity}"),
        Subject {
            model: Some(model), ..
        } => format!("model {model}"),
        Subject {
            image: Some(image), ..
        } => format!("image {image}"),
        Subject {
            endpoint: Some(endpoint),
            ..
        } => format!("endpoint {endpoint}"),
        Subject {
            node: Some(node), ..
        } => format!("node {node}"),
        _ => "scheduler".into(),
    }
}

/// What happened, why, and how often. What a replica wrote must not steer the terminal.
fn text(event: &EventInfo) -> String {
    let mut text = event.message.clone();
    if !event.cause.is_empty() {
        text = format!("{text}: {}", event.cause);
    }
    if event.count > 1 {
        let over = event.unix_ms.saturating_sub(event.first_unix_ms);
        let over = format::age(Duration::from_millis(over));
        text = format!("{text} ({} times in {over})", event.count);
    }
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
