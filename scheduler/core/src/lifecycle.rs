//! What facts do to a replica: the arrows of the drawing in `replica`. Pure: facts and the time in,
//! changes out.

use std::time::Duration;

use shared::ids::EndpointName;
use shared::report::{Health, ReplicaPhase};
use shared::units::{Bytes, MonoTime};

use crate::node::Contact;
use crate::replica::{Change, Facts, HEALTH_GRACE, Replica, Seen, Stage, UNREADY_LIMIT};

impl Replica {
    /// The next change that the facts call for; asked again until there is none.
    pub(crate) fn advance(&mut self, facts: &Facts, now: MonoTime) -> Option<Change> {
        if facts.revoked {
            return Some(Change::Gone {
                why: "its node was revoked".into(),
            });
        }
        match &self.stage {
            Stage::Expected => self.advance_expected(facts, now),
            Stage::Starting => self.advance_starting(facts, now),
            Stage::Ready { .. } | Stage::Unready { .. } => self.advance_serving(facts, now),
            Stage::Draining(_) => self.advance_draining(facts, now),
            Stage::Stopping { since, why } => {
                let reported_since = facts.agent == Contact::Fresh && facts.agent_heard > *since;
                let gone = facts.agent == Contact::Silent || (reported_since && !self.exists());
                gone.then(|| Change::Gone { why: why.clone() })
            }
            Stage::Lost { .. } => self.advance_lost(facts),
        }
    }

    fn advance_expected(&mut self, facts: &Facts, now: MonoTime) -> Option<Change> {
        match facts.agent {
            Contact::Awaited => return None,
            Contact::Silent => return Some(self.lose(now)),
            Contact::Fresh => {}
        }
        if let Some(failed) = self.failed_by_agent() {
            return Some(failed);
        }
        if self.running() && self.was_ready {
            // Its own gateway may simply not have reconnected yet.
            if facts.gateway == Contact::Awaited {
                return None;
            }
            self.stage = Stage::Ready { since: now };
        } else {
            self.stage = Stage::Starting;
        }
        Some(Change::Found)
    }

    fn advance_starting(&mut self, facts: &Facts, now: MonoTime) -> Option<Change> {
        if facts.agent == Contact::Silent {
            return Some(self.lose(now));
        }
        if let Some(failed) = self.failed_by_agent() {
            return Some(failed);
        }
        if !self.running() {
            return None;
        }
        let Err(why) = self.healthy(facts, now) else {
            let startup = self
                .placed_at
                .filter(|_| !self.was_ready)
                .map(|placed| now.saturating_since(placed));
            self.was_ready = true;
            self.stage = Stage::Ready { since: now };
            return Some(Change::Ready { startup });
        };
        let deadline = u64::from(self.template.health.start_deadline_seconds);
        let running_for = self
            .seen
            .as_ref()
            .map(|seen| now.saturating_since(seen.entered));
        if running_for.is_some_and(|it| it > Duration::from_secs(deadline)) {
            let runtime = &self.entity.runtime;
            return Some(self.replace(
                format!(
                    "not healthy within {deadline} s of its start (health.start_deadline_seconds of \
                     runtime {runtime}): {why}"
                ),
                now,
            ));
        }
        None
    }

    fn advance_serving(&mut self, facts: &Facts, now: MonoTime) -> Option<Change> {
        if facts.agent == Contact::Silent {
            return Some(self.lose(now));
        }
        if let Some(failed) = self.failed_by_agent() {
            return Some(failed);
        }
        let ready = if self.running() {
            self.healthy(facts, now)
        } else {
            let phase = self.seen.as_ref().map_or("absent", |s| s.phase.as_str());
            Err(format!("its agent says it is {phase}"))
        };
        match (&self.stage, ready) {
            (Stage::Unready { .. }, Ok(())) => {
                self.stage = Stage::Ready { since: now };
                Some(Change::Ready { startup: None })
            }
            (Stage::Unready { since, .. }, Err(why)) => {
                let limit = UNREADY_LIMIT.as_secs();
                (now.saturating_since(*since) > UNREADY_LIMIT)
                    .then(|| self.replace(format!("not ready for {limit} s: {why}"), now))
            }
            (_, Ok(())) => None,
            (_, Err(why)) => {
                self.stage = Stage::Unready {
                    since: now,
                    why: why.clone(),
                };
                Some(Change::Unready { why })
            }
        }
    }

    fn advance_draining(&mut self, facts: &Facts, now: MonoTime) -> Option<Change> {
        let Stage::Draining(drain) = &self.stage else {
            return None;
        };
        let why = drain.why.clone();
        let ended =
            |seen: &Seen| matches!(seen.phase, ReplicaPhase::Failed | ReplicaPhase::Stopped);
        if facts.agent == Contact::Silent || self.seen.as_ref().is_some_and(ended) {
            return Some(Change::Gone { why });
        }
        let empty = self.probed.in_flight == 0
            && drain
                .acked_at_report
                .is_some_and(|then| facts.gateway_reports > then);
        let late = now.saturating_since(drain.since) > facts.drain_deadline;
        if !empty && !late {
            return None;
        }
        self.stage = Stage::Stopping { since: now, why };
        Some(Change::Drained { late: !empty })
    }

    fn advance_lost(&mut self, facts: &Facts) -> Option<Change> {
        if facts.agent != Contact::Fresh {
            return None;
        }
        if !self.exists() {
            return Some(Change::Gone {
                why: "its lost node came back without it".into(),
            });
        }
        self.stage = Stage::Starting;
        Some(Change::Returned)
    }

    fn lose(&mut self, now: MonoTime) -> Change {
        self.stage = Stage::Lost { since: now };
        // What was said before says nothing about what will be there when the node is back.
        self.seen = None;
        Change::Lost
    }

    fn replace(&mut self, why: String, now: MonoTime) -> Change {
        self.stage = Stage::Stopping {
            since: now,
            why: why.clone(),
        };
        Change::Failed { why, gone: false }
    }

    /// Whether its agent has it, in whatever phase that is not an end.
    fn exists(&self) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| !matches!(seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed))
    }

    /// A call that timed out says nothing of a container: its probes go on telling.
    fn running(&self) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| matches!(seen.phase, ReplicaPhase::Running | ReplicaPhase::Unknown))
    }

    fn failed_by_agent(&self) -> Option<Change> {
        let seen = self.seen.as_ref()?;
        (seen.phase == ReplicaPhase::Failed).then(|| Change::Failed {
            why: self.failure(seen),
            gone: true,
        })
    }

    /// Why it failed, for people. An agent says how it ended in words of its own; the limit that it ran
    /// into, and how to see more, are better known here.
    fn failure(&self, seen: &Seen) -> String {
        failure(seen, self.entity.resources.memory_bytes, &self.endpoint)
    }

    /// What its gateway thinks of it; `Err` says why it is not believed healthy.
    fn healthy(&self, facts: &Facts, now: MonoTime) -> Result<(), String> {
        if facts.gateway == Contact::Silent {
            return Err("its node's gateway is silent".into());
        }
        let detail = |text: &str| match self.probed.detail.as_str() {
            "" => text.to_owned(),
            detail => format!("{text}: {detail}"),
        };
        match self.probed.health {
            Some(Health::Healthy) => Ok(()),
            Some(Health::Unhealthy) => Err(detail("its probes fail")),
            Some(Health::Starting) | None => {
                let believed = matches!(self.stage, Stage::Ready { .. })
                    && now.saturating_since(self.probed.since) <= HEALTH_GRACE;
                if believed {
                    Ok(())
                } else if self.probed.health.is_none() {
                    Err("its node's gateway has not found it".into())
                } else {
                    Err(detail("no probe has succeeded yet"))
                }
            }
        }
    }
}
fn failure(seen: &Seen, memory_bytes: u64, endpoint: &EndpointName) -> String {
    let Some(exit) = &seen.exit else {
        return match seen.reason.as_str() {
            "" => "failed without a reason".to_owned(),
            reason => reason.to_owned(),
        };
    };
    if exit.out_of_memory {
        return format!(
            "killed for memory (exit code {}): it reached its limit of {}, give it more with --memory \
             (stokehold.memory_bytes) or lower the load",
            exit.code,
            Bytes(memory_bytes)
        );
    }
    // Earlier agents add what is said below.
    let said = seen.reason.trim_end_matches(": see its logs");
    let how = match said {
        "" if exit.code > 128 => format!("killed by signal {}", exit.code - 128),
        "" => format!("exited with code {}", exit.code),
        said => said.to_owned(),
    };
    format!("{how}, see `stokehold logs {endpoint}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::report::ReplicaExit;

    #[test]
    fn a_failure_is_told_once_however_much_of_it_the_agent_says() {
        let told = |reason: &str, exit: Option<(i32, bool)>| {
            let seen = Seen {
                phase: ReplicaPhase::Failed,
                reason: reason.into(),
                entered: MonoTime::ZERO,
                exit: exit.map(|(code, out_of_memory)| ReplicaExit {
                    code,
                    out_of_memory,
                }),
                sample: None,
            };
            let endpoint = EndpointName::parse("iris").expect("valid");
            failure(&seen, 1 << 30, &endpoint)
        };
        let seen = "exited with code 41, see `stokehold logs iris`";
        for said in [
            "exited with code 41",
            "exited with code 41: see its logs",
            "",
        ] {
            assert_eq!(told(said, Some((41, false))), seen);
        }
        assert_eq!(
            told("", Some((139, false))),
            "killed by signal 11, see `stokehold logs iris`"
        );
        assert_eq!(told("no such image", None), "no such image");
        assert_eq!(
            told("gone", Some((137, true))),
            "killed for memory (exit code 137): it reached its limit of 1 GiB, give it more with \
             --memory (stokehold.memory_bytes) or lower the load"
        );
        assert_eq!(told("", None), "failed without a reason");
    }
}
