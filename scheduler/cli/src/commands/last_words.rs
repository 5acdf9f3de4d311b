//! The last lines that a replica wrote before it failed, for verdicts and `describe`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use shared::api::{LogLine, ReplicaInfo};
use shared::ids::{EndpointName, NodeName, ReplicaId};

use crate::client::{Call, Client};
use crate::commands::endpoint::description_path;
use crate::output::format::short;

/// Enough for a Python traceback.
const LOG_BYTES: u32 = 8 << 10;
const LOG_LINES: usize = 25;
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// What a replica wrote last, and how to see more of it.
#[derive(Debug, Serialize)]
pub(crate) struct LastWords {
    endpoint: EndpointName,
    replica: ReplicaId,
    node: NodeName,
    lines: Vec<String>,
    /// Why there are no lines, where they could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

/// Of the newest replica that failed; `None` where none did. A log that cannot be had hides no
/// verdict.
pub(crate) async fn last_words(replicas: &[ReplicaInfo], client: &Client) -> Option<LastWords> {
    // The one that has been in that state for the shortest time is newest.
    let newest = replicas
        .iter()
        .filter(|replica| replica.state == "failed")
        .min_by(|a, b| a.since_s.total_cmp(&b.since_s))?;
    let call = Call::get(format!("{}/logs", description_path(&newest.endpoint)))
        .query("replica", &newest.id)
        .query("tail_bytes", LOG_BYTES)
        .timeout(Some(LOG_PATIENCE));
    let (lines, unreadable) = match client.bytes(call).await {
        Ok(body) => (last_lines(&body), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Some(LastWords {
        endpoint: newest.endpoint.clone(),
        replica: newest.id.clone(),
        node: newest.node.clone(),
        lines,
        unreadable,
    })
}

impl LastWords {
    /// The command that shows all of it.
    pub(crate) fn more(&self) -> String {
        format!(
            "stokehold logs {} --replica {}",
            self.endpoint, self.replica
        )
    }
}

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, node) = (short(self.replica.as_str()), &self.node);
        if let Some(why) = &self.unreadable {
            return write!(f, "the log of replica {id} on {node} cannot be read: {why}");
        }
        if self.lines.is_empty() {
            return write!(f, "replica {id} on {node} wrote no log");
        }
        write!(
            f,
            "last lines of replica {id} on {node} (more: {}):",
            self.more()
        )?;
        for line in &self.lines {
            write!(f, "\n  | {line}")?;
        }
        Ok(())
    }
}

fn last_lines(ndjson: &[u8]) -> Vec<String> {
    let lines: Vec<String> = ndjson
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<LogLine>(line).ok())
        .map(|line| printable(&line.m))
        .collect();
    let skipped = lines.len().saturating_sub(LOG_LINES);
    lines.into_iter().skip(skipped).collect()
}

/// Control characters that a model wrote must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_of_a_log_are_kept_and_a_torn_one_is_left_out() {
        let mut ndjson = String::new();
        for n in 0..40 {
            ndjson.push_str(&format!(
                "{{\"replica\":\"0000000000000001\",\"t\":\"x\",\"s\":\"stderr\",\"m\":\"line \\u001b[2J{n}\"}}\n"
            ));
        }
        ndjson.push_str("{\"replica\":");
        let lines = last_lines(ndjson.as_bytes());
        assert_eq!(lines.len(), LOG_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line [2J39"));
    }

    #[test]
    fn last_words_say_where_they_come_from_and_how_to_see_more() {
        let mut words = LastWords {
            endpoint: "iris".parse().expect("name"),
            replica: "0000000000000001".parse().expect("id"),
            node: "n1".parse().expect("name"),
            lines: vec!["boom".into()],
            unreadable: None,
        };
        assert_eq!(
            words.to_string(),
            "last lines of replica 00000000 on n1 (more: stokehold logs iris --replica \
             0000000000000001):\n  | boom"
        );
        words.lines.clear();
        assert_eq!(words.to_string(), "replica 00000000 on n1 wrote no log");
    }
}
