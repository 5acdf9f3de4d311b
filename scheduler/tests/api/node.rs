//! A node that says that all goes well: an agent that runs whatever its plan holds at once, and a
//! gateway that finds it healthy and has a log for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::quic;
use serde_json::json;
use shared::ids::{Revision, Role};
use shared::plan::Plan;
use shared::report::{
    AgentReport, GatewayReport, Health, HoldState, ImageStatus, ModelStatus, NodeCapacity,
    NodeSample, ReplicaHealth, ReplicaPhase, ReplicaStatus,
};
use shared::routes::Routes;
use shared::wire::{
    AgentReportMessage, ClientBody, GatewayReportMessage, Hello, RequestBody, ServerBody,
    ServerFrame, StreamReply, StreamRequest,
};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Session, hello};

const REPORT_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) plan: Option<Plan>,
    pub(crate) routes: Option<Routes>,
    /// Log streams that their reader has stopped.
    pub(crate) stopped_logs: usize,
}

pub(crate) struct Node {
    pub(crate) seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

/// What a node keeps on its disk.
pub(crate) struct Membership {
    agent: daemon::identity::Identity,
    gateway: daemon::identity::Identity,
}

impl Membership {
    pub(crate) async fn of(cluster: &Cluster, name: &str) -> Self {
        let token = cluster.join_token(json!({})).await;
        Self {
            agent: cluster.joined(&token, Role::Agent, name).await,
            gateway: cluster.joined(&token, Role::Gateway, name).await,
        }
    }
}

impl Node {
    /// Connects; `held` is what it has run since before.
    pub(crate) async fn start(
        cluster: &Cluster,
        membership: &Membership,
        held: Option<Plan>,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Seen {
            plan: held,
            ..Seen::default()
        }));
        let mut tasks = JoinSet::new();
        let agent = cluster.session(&membership.agent, hello()).await;
        let addresses = Hello {
            peer_address: "127.0.0.1:8444".into(),
            client_address: "https://127.0.0.1:8443".into(),
            ..hello()
        };
        let gateway = cluster.session(&membership.gateway, addresses).await;
        tasks.spawn(answer_logs(gateway.connection.clone(), Arc::clone(&seen)));
        tasks.spawn(run(agent, Arc::clone(&seen), |seen| {
            let report = agent_report(seen.plan.as_ref());
            ClientBody::AgentReport(AgentReportMessage::from(&report))
        }));
        tasks.spawn(run(gateway, Arc::clone(&seen), |seen| {
            let report = gateway_report(seen);
            ClientBody::GatewayReport(GatewayReportMessage::from(&report))
        }));
        Self { seen, tasks }
    }

    /// It is cut off at once.
    pub(crate) async fn crash(mut self) -> Option<Plan> {
        self.tasks.shutdown().await;
        self.seen.lock().expect("no panic").plan.take()
    }
}

async fn run(
    session: Session,
    seen: Arc<Mutex<Seen>>,
    report: impl Fn(&Seen) -> ClientBody + Send + 'static,
) {
    let Session {
        connection: _connection,
        mut send,
        mut receive,
    } = session;
    let reading = Arc::clone(&seen);
    let read = async move {
        while let Ok(Some(frame)) = quic::read_frame::<ServerFrame>(&mut receive).await {
            let mut seen = reading.lock().expect("no panic");
            match frame.body {
                Some(ServerBody::Plan(plan)) => {
                    seen.plan = Some(Plan::try_from(plan).expect("a valid plan"));
                }
                Some(ServerBody::Routes(routes)) => {
                    seen.routes = Some(Routes::try_from(routes).expect("valid routes"));
                }
                Some(ServerBody::Welcome(_) | ServerBody::Trust(_)) | None => {}
            }
        }
    };
    let write = async move {
        let mut ticker = tokio::time::interval(REPORT_INTERVAL);
        loop {
            ticker.tick().await;
            let body = report(&seen.lock().expect("no panic"));
            let frame = shared::wire::ClientFrame { body: Some(body) };
            if quic::write_frame(&mut send, &frame).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

fn agent_report(plan: Option<&Plan>) -> AgentReport {
    let plan_parts = |plan: &Plan| {
        let replicas = plan.replicas.iter().map(|replica| ReplicaStatus {
            id: replica.id.clone(),
            endpoint: replica.endpoint.clone(),
            entity: replica.entity.clone(),
            phase: ReplicaPhase::Running,
            reason: String::new(),
            since: Duration::from_secs(1),
            exit: None,
            sample: None,
        });
        let images = plan.images.iter().map(|image| ImageStatus {
            reference: image.reference.clone(),
            state: HoldState::Ready,
        });
        let models = plan.models.iter().map(|model| ModelStatus {
            manifest: model.manifest,
            state: HoldState::Ready,
        });
        (replicas.collect(), images.collect(), models.collect())
    };
    let (replicas, images, models) = plan.map(plan_parts).unwrap_or_default();
    AgentReport {
        plan: plan.map(|plan| (plan.epoch, plan.revision)),
        capacity: NodeCapacity {
            cpu_millis: 8_000,
            memory_bytes: 16 << 30,
            cache_bytes: 100 << 30,
            cache_room_bytes: None,
            gpus: vec![],
            gpus_absent: Some("none".into()),
        },
        replicas,
        images,
        models,
        sample: NodeSample::default(),
    }
}

fn gateway_report(seen: &Seen) -> GatewayReport {
    let replicas = seen.plan.iter().flat_map(|plan| &plan.replicas);
    GatewayReport {
        routes: seen
            .routes
            .as_ref()
            .map(|routes| (routes.epoch, routes.revision)),
        replicas: replicas
            .map(|replica| ReplicaHealth {
                id: replica.id.clone(),
                health: Health::Healthy,
                detail: String::new(),
                in_flight: 0,
                load: None,
            })
            .collect(),
        traffic: vec![],
    }
}

async fn answer_logs(connection: quinn::Connection, seen: Arc<Mutex<Seen>>) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let request = quic::read_frame::<StreamRequest>(&mut receive).await;
        let Ok(Some(StreamRequest {
            body: Some(RequestBody::ReadLog(read)),
        })) = request
        else {
            continue;
        };
        quic::write_frame(&mut send, &StreamReply::default())
            .await
            .expect("writes");
        for (second, message) in [(2, "second"), (1, "first")] {
            let line =
                json!({"t": format!("2026-01-01T00:00:0{second}Z"), "s": "stdout", "m": message});
            send.write_all(format!("{line}\n").as_bytes())
                .await
                .expect("writes");
        }
        if read.follow {
            // Until its reader leaves.
            let _ = send.stopped().await;
            seen.lock().expect("no panic").stopped_logs += 1;
        } else {
            let _ = send.finish();
        }
    }
}

/// Whether routes name a replica that takes requests, and under which revision.
pub(crate) fn ready_replicas(routes: Option<&Routes>) -> (usize, Revision) {
    let Some(routes) = routes else {
        return (0, Revision(0));
    };
    let entities = routes
        .endpoints
        .iter()
        .flat_map(|endpoint| &endpoint.entities);
    let replicas = entities.flat_map(|entity| &entity.replicas);
    (
        replicas.filter(|replica| !replica.draining).count(),
        routes.revision,
    )
}
