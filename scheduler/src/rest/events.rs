//! What happened: a list, or a stream that goes on.
//!
//! A follower is never waited for: it reads from the core's log as fast as it can, and is told when
//! some of what it has not read yet is no longer kept.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use scheduler_core::events::{Filter, Page};
use scheduler_core::{ApiError, Core};
use serde::Deserialize;
use shared::api::events::{EventLine, EventList};
use shared::ids::{EndpointName, NodeName};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::auth::{Caller, Query};
use super::body::{Json, Params};
use super::error::{Refusal, invalid};
use super::{Api, ndjson};
use crate::control::{Handle, Stopping};

const DEFAULT_LIMIT: usize = 200;
const MAX_LIMIT: usize = 1000;
/// Events that a follower holds at once.
const BATCH: usize = 64;

#[derive(Deserialize)]
pub(super) struct EventParams {
    endpoint: Option<String>,
    node: Option<String>,
    /// Those after this number.
    since: Option<u64>,
    /// Those of the last so many seconds.
    within_s: Option<u64>,
    warnings: Option<bool>,
    limit: Option<usize>,
    follow: Option<bool>,
}

/// `GET /api/stokehold/v1/events`. Without `since` the newest ones, with it the next ones; with
/// `follow=true` JSON lines: those first, then what comes later, until the caller leaves.
pub(super) async fn list(
    _: Caller<Query>,
    State(api): State<Api>,
    Params(params): Params<EventParams>,
) -> Result<Response, Refusal> {
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let filter = filter(&api, &params)?;
    let (first, asked) = (filter.clone(), params.since);
    let page = api.control.read(move |core| {
        known(core, &first)?;
        Ok::<_, ApiError>(match asked {
            Some(seq) => core.events().after(seq, &first, limit),
            None => core.events().newest(&first, limit),
        })
    });
    let page = page.await??;
    if params.follow != Some(true) {
        let Page {
            events,
            up_to,
            missed,
        } = page;
        let list = EventList {
            events,
            last_seq: up_to,
            missed,
        };
        return Ok(Json(list).into_response());
    }
    let place = Arc::clone(&api.followers).try_acquire_owned();
    let place = place.map_err(|_| {
        ApiError::unavailable("too many clients follow the events: end some of them")
    })?;
    let mut follower = Follower {
        control: api.control.clone(),
        news: api.control.events(),
        filter,
        seq: 0,
        told_missed: 0,
        waiting: VecDeque::new(),
        cancel: api.cancel.clone(),
        _place: place,
    };
    follower.take(page);
    Ok(ndjson(Body::from_stream(stream::unfold(
        follower,
        async |mut follower| {
            let line = follower.next().await?;
            Some((Ok::<_, std::convert::Infallible>(line), follower))
        },
    ))))
}

fn filter(api: &Api, params: &EventParams) -> Result<Filter, Refusal> {
    let endpoint = params.endpoint.as_deref().map(EndpointName::parse);
    let node = params.node.as_deref().map(NodeName::parse);
    let within_ms = params.within_s.map(|seconds| seconds.saturating_mul(1000));
    Ok(Filter {
        endpoint: endpoint.transpose().map_err(|e| invalid("endpoint", e))?,
        node: node.transpose().map_err(|e| invalid("node", e))?,
        warnings_only: params.warnings == Some(true),
        from_unix_ms: within_ms.map_or(0, |ms| api.clock.unix_ms().saturating_sub(ms)),
    })
}

/// A mistyped name is told, rather than answered by silence. What was deleted stays readable.
fn known(core: &Core, filter: &Filter) -> Result<(), ApiError> {
    let told = |filter: Filter| !core.events().newest(&filter, 1).events.is_empty();
    if let Some(endpoint) = &filter.endpoint {
        let of_it = Filter {
            endpoint: Some(endpoint.clone()),
            ..Filter::default()
        };
        let exists = core.get_endpoint(endpoint.as_str()).is_ok();
        if !exists && !told(of_it) {
            return Err(ApiError::not_found(format!(
                "endpoint {endpoint} does not exist, and no event of it is kept"
            )));
        }
    }
    if let Some(node) = &filter.node {
        let of_it = Filter {
            node: Some(node.clone()),
            ..Filter::default()
        };
        if core.registry.node(node).is_none() && !told(of_it) {
            return Err(ApiError::not_found(format!(
                "node {node} does not exist, and no event of it is kept"
            )));
        }
    }
    Ok(())
}

struct Follower {
    control: Handle,
    news: watch::Receiver<u64>,
    filter: Filter,
    /// Everything up to here was read.
    seq: u64,
    told_missed: u64,
    /// Lines that were read and not sent yet.
    waiting: VecDeque<EventLine>,
    cancel: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// The next line; `None` at the end of the scheduler.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.waiting.pop_front() {
                let mut bytes = serde_json::to_vec(&line).expect("events serialise");
                bytes.push(b'\n');
                return Some(bytes.into());
            }
            let cancel = self.cancel.clone();
            tokio::select! {
                () = cancel.cancelled() => return None,
                read = self.read() => read.ok()?,
            }
        }
    }

    /// Waits until there is something after what was read, and reads it.
    async fn read(&mut self) -> Result<(), Stopping> {
        let seq = self.seq;
        let news = self.news.wait_for(|last| *last != seq).await;
        drop(news.map_err(|_| Stopping)?);
        let filter = self.filter.clone();
        let page = self
            .control
            .read(move |core| core.events().after(seq, &filter, BATCH));
        let page = page.await?;
        self.take(page);
        Ok(())
    }

    fn take(&mut self, page: Page) {
        if let Some(missed) = page.missed.filter(|it| it.up_to_seq != self.told_missed) {
            self.told_missed = missed.up_to_seq;
            self.waiting.push_back(EventLine::Missed { missed });
        }
        self.seq = page.up_to;
        let lines = page.events.into_iter();
        self.waiting
            .extend(lines.map(|event| EventLine::Event(Box::new(event))));
    }
}
