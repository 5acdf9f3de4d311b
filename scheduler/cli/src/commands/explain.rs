//! `stokehold explain`: how an endpoint's autoscaler stands, and its last decisions with the numbers
//! they were made from, the rule that fired, and what would change it.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Args;
use serde_json::Value;
use shared::api::autoscaler::{
    DecisionInput, DecisionRecord, Explained, ExplainedEntity, TargetInfo, TargetOrigin,
};
use shared::ids::{EndpointName, EntityName};

use crate::client::{Call, Client};
use crate::commands::endpoint::description_path;
use crate::output::Output;
use crate::output::format::{self, UNKNOWN};

const EXAMPLES: &str = "\
Examples:
  stokehold explain iris
  stokehold explain iris --entity iris-2 -n 3
  stokehold explain iris --output json | jq '.entities[].vertical[-1]'";

/// Narrow enough for any terminal.
const WIDTH: usize = 80;
/// Where what belongs to a word at the left begins.
const INDENT: usize = 12;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExplainArgs {
    name: EndpointName,
    /// Only this served entity.
    #[arg(long, value_name = "NAME")]
    entity: Option<EntityName>,
    /// How many of the last decisions of each axis.
    #[arg(
        short = 'n',
        long = "decisions",
        default_value_t = 10,
        value_name = "N"
    )]
    decisions: usize,
}

pub(crate) async fn run(
    args: &ExplainArgs,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    let mut call = Call::get(format!("{}/explain", description_path(&args.name)));
    if let Some(entity) = &args.entity {
        call = call.query("entity", entity);
    }
    if output.is_json() {
        return output.json(&client.call::<Value>(call).await?);
    }
    let explained: Explained = client.call(call).await?;
    if explained.entities.is_empty() {
        output.note(format!("endpoint {} does not serve yet", args.name));
        return Ok(());
    }
    output.line(shown(&explained, args.decisions, SystemTime::now()).trim_end())
}

fn shown(explained: &Explained, decisions: usize, now: SystemTime) -> String {
    let mut text = String::new();
    for entity in &explained.entities {
        let name = format!("{}/{}", explained.endpoint, entity.entity);
        let _ = writeln!(text, "{}", toned(BOLD, &name));
        for (word, said) in standing(entity) {
            paragraph(&mut text, word, &said);
        }
        axis(&mut text, "replicas", &entity.horizontal, decisions, now);
        axis(&mut text, "target", &entity.vertical, decisions, now);
        text.push('\n');
    }
    text
}

/// How things stand, as words with what there is to say of them.
fn standing(entity: &ExplainedEntity) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let demand = entity.now.as_ref().map_or_else(
        || "nothing was measured yet".to_owned(),
        |now| {
            format!(
                "{:.1} requests at once, {:.1} of them waiting; {:.1} arrive a second",
                now.active + now.queued,
                now.queued,
                now.arrivals
            )
        },
    );
    lines.push(("demand", demand));
    lines.push(("replicas", replicas(entity)));
    for target in &entity.targets {
        lines.push(("target", target_line(target, entity.targets.len() > 1)));
    }
    if let Some(latency) = latency(entity) {
        lines.push(("latency", latency));
    }
    if let Some(startup) = entity.startup_s {
        lines.push(("start-up", format!("{startup:.1} s, as measured")));
    }
    lines
}

fn replicas(entity: &ExplainedEntity) -> String {
    let mut text = format!("{} ready", entity.ready_replicas);
    if entity.starting_replicas > 0 {
        let _ = write!(text, ", {} starting", entity.starting_replicas);
    }
    let _ = write!(
        text,
        ", {} wanted ({} to {}",
        entity.desired_replicas, entity.min_replicas, entity.max_replicas
    );
    if entity.provisioned_concurrency > 0 {
        let provisioned = entity.provisioned_concurrency;
        let _ = write!(text, ", {provisioned} requests at once provisioned");
    }
    text.push(')');
    text
}

fn target_line(target: &TargetInfo, of_several: bool) -> String {
    let mut text = format!("{} requests a replica", target.target_concurrency);
    if of_several {
        let _ = write!(text, " on {}", target.class);
    }
    text += match target.origin {
        TargetOrigin::Pinned => ", pinned by its configuration: nothing is learned",
        TargetOrigin::Guess => ", still a guess",
        TargetOrigin::Learned => ", learned",
    };
    if target.origin != TargetOrigin::Pinned {
        if let Some(rule) = &target.bound_by {
            let _ = write!(text, "; last rule: {rule}");
        }
        if let Some(explore) = target.explore {
            let _ = write!(text, "; one replica tries {explore}");
        }
    }
    text
}

fn latency(entity: &ExplainedEntity) -> Option<String> {
    let p95 = entity.now.as_ref().and_then(|now| now.p95_ms);
    let objective = entity.latency_objective_ms;
    if p95.is_none() && objective.is_none() {
        return None;
    }
    let p95 = p95.map_or_else(|| UNKNOWN.to_owned(), |p95| format!("{p95:.1} ms"));
    let objective = objective.map_or_else(
        || "no objective is set".to_owned(),
        |objective| format!("the objective is {objective} ms"),
    );
    Some(format!("p95 {p95} at the replica; {objective}"))
}

/// The last decisions of an axis, oldest first, so that the newest stands last on the screen.
fn axis(
    text: &mut String,
    what: &str,
    decisions: &[DecisionRecord],
    count: usize,
    now: SystemTime,
) {
    let _ = writeln!(text, "\n{}", toned(BOLD, &format!("decisions: {what}")));
    if decisions.is_empty() {
        text.push_str("none yet\n");
    }
    for decision in &decisions[decisions.len().saturating_sub(count)..] {
        one(text, decision, now);
    }
}

fn one(text: &mut String, decision: &DecisionRecord, now: SystemTime) {
    let (before, after) = (decision.before, decision.after);
    let change = match after.cmp(&before) {
        std::cmp::Ordering::Greater => toned(GREEN, &format!("{before} -> {after}")),
        std::cmp::Ordering::Less => toned(YELLOW, &format!("{before} -> {after}")),
        std::cmp::Ordering::Equal => format!("stays {after}"),
    };
    let age = format!("{} ago", format::since_unix_ms(decision.unix_ms, now));
    let _ = write!(text, "{age:<INDENT$}{change}  {}", decision.rule);
    if let Some(class) = &decision.class {
        let _ = write!(text, " on {class}");
    }
    if decision.count > 1 {
        let since = format::since_unix_ms(decision.first_unix_ms, now);
        let _ = write!(text, " ({} times since {since} ago)", decision.count);
    }
    text.push('\n');
    paragraph(text, "", &decision.because);
    let inputs: Vec<String> = decision.inputs.iter().map(input).collect();
    if !inputs.is_empty() {
        paragraph(text, "  from", &inputs.join(", "));
    }
    paragraph(text, "  otherwise", &decision.would_change);
}

fn input(input: &DecisionInput) -> String {
    let value = match (input.value, input.unit.as_str()) {
        (None, _) => return format!("{} {UNKNOWN}", input.name),
        (Some(ratio), "ratio") => {
            return format!("{} {}", input.name, format::percent(Some(ratio)));
        }
        (Some(value), _) if value.fract() == 0.0 => format!("{value:.0}"),
        (Some(value), _) => format!("{value:.2}"),
    };
    format!("{} {value} {}", input.name, input.unit)
}

/// `word`, and beside it a text in as many lines as it takes.
fn paragraph(text: &mut String, word: &str, said: &str) {
    if said.is_empty() {
        return;
    }
    let mut line = format!("{word:<INDENT$}");
    let mut length = line.chars().count();
    let mut fresh = true;
    for word in said.split_whitespace() {
        let more = word.chars().count();
        if !fresh && length + 1 + more > WIDTH {
            let _ = writeln!(text, "{}", line.trim_end());
            line = " ".repeat(INDENT);
            (length, fresh) = (INDENT, true);
        }
        if !std::mem::take(&mut fresh) {
            line.push(' ');
            length += 1;
        }
        line.push_str(word);
        length += more;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

/// Taken out again where the output is no terminal.
const BOLD: &str = "\u{1b}[1m";
const GREEN: &str = "\u{1b}[32m";
const YELLOW: &str = "\u{1b}[33m";

fn toned(tone: &str, text: &str) -> String {
    format!("{tone}{text}\u{1b}[0m")
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
