//! containerd's events, as hints to look sooner. They are not replayed after a disconnect, so nothing
//! depends on them: each new subscription asks for a full look, and so does the clock.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::tonic::Status;
use containerd_client::types::Envelope;
use daemon::telemetry::Chain;
use prost::{Message, Name};
use shared::ids::ReplicaId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{CallError, Containerd};

const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// Something about tasks changed.
    Changed,
    /// The kernel killed a process of it for want of memory; also when its first process lives on.
    OutOfMemory(ReplicaId),
}

/// Follows the events until cancelled. An event that finds the channel full is dropped: the channel
/// then holds enough reasons to look.
pub async fn follow(
    containerd: Containerd,
    events: mpsc::Sender<NodeEvent>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut said = false;
    loop {
        let ended = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            ended = subscription(&containerd, &events, &mut said) => ended,
        };
        match ended {
            Ok(()) => debug!("containerd ended the event stream"),
            // Said once, not each second that containerd is away.
            Err(error) if !said => {
                said = true;
                warn!(error = %Chain(&error), "no events from containerd, subscribing again");
            }
            Err(error) => debug!(error = %Chain(&error), "still no events from containerd"),
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY_AFTER) => {}
        }
    }
}

/// `said` is whether its failure was complained of; that is over once there is a subscription again.
async fn subscription(
    containerd: &Containerd,
    events: &mpsc::Sender<NodeEvent>,
    said: &mut bool,
) -> Result<(), CallError> {
    let filter = format!("namespace=={},topic~=/tasks/", containerd.namespace());
    let request = containerd.request(SubscribeRequest {
        filters: vec![filter],
    });
    let mut client = containerd.events();
    // No time-out: containerd answers with the first event, and a quiet node may have none for days.
    // A containerd that hangs is noticed by every other call.
    let mut stream = client
        .subscribe(request)
        .await
        .map_err(refused)?
        .into_inner();
    *said = false;
    // What happened before the subscription began is seen by looking.
    let _ = events.try_send(NodeEvent::Changed);
    loop {
        // A stream has no end in time; its cancellation is the caller's.
        match stream.message().await {
            Ok(Some(envelope)) => {
                if let Some(event) = read(&envelope) {
                    let _ = events.try_send(event);
                }
            }
            Ok(None) => return Ok(()),
            Err(status) => return Err(refused(status)),
        }
    }
}

fn refused(status: Status) -> CallError {
    CallError::Refused {
        call: "events.subscribe",
        status: Box::new(status),
    }
}

fn read(envelope: &Envelope) -> Option<NodeEvent> {
    let event = envelope.event.as_ref()?;
    let name = event.type_url.rsplit('/').next()?;
    if name == TaskOom::full_name() {
        let oom = TaskOom::decode(event.value.as_slice()).ok()?;
        let replica = ReplicaId::parse(&oom.container_id).ok()?;
        return Some(NodeEvent::OutOfMemory(replica));
    }
    if name == TaskExit::full_name() {
        let exit = TaskExit::decode(event.value.as_slice()).ok()?;
        // Exits of processes that were started beside the first one say nothing.
        return (exit.id == exit.container_id).then_some(NodeEvent::Changed);
    }
    Some(NodeEvent::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn envelope(name: &str, value: Vec<u8>) -> Envelope {
        Envelope {
            event: Some(Any {
                type_url: name.to_owned(),
                value,
            }),
            ..Envelope::default()
        }
    }

    #[test]
    fn events_say_which_replica_ran_out_of_memory() {
        let id = ReplicaId::from_bits(1);
        let oom = TaskOom {
            container_id: id.to_string(),
        };
        let read_back = read(&envelope("containerd.events.TaskOOM", oom.encode_to_vec()));
        assert_eq!(read_back, Some(NodeEvent::OutOfMemory(id)));
    }

    #[test]
    fn the_exit_of_a_second_process_is_no_reason_to_look() {
        let exit = |id: &str| {
            let exit = TaskExit {
                container_id: "a".into(),
                id: id.into(),
                ..TaskExit::default()
            };
            read(&envelope(
                "containerd.events.TaskExit",
                exit.encode_to_vec(),
            ))
        };
        assert_eq!(exit("a"), Some(NodeEvent::Changed));
        assert_eq!(exit("exec-1"), None);
    }
}
