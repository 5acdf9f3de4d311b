//! Renewals, expiry and the rotation of the authority over the real REST API and real sessions.

use std::sync::Arc;
use std::time::Duration;

use daemon::credentials::Credentials;
use daemon::identity::{Identity, new_request, to_pem, unix_now};
use daemon::join::{JoinError, join};
use daemon::link::{LinkEvent, LinkHandle, LinkOptions, link};
use daemon::renew::Renewal;
use daemon::scheduler_call::CallError;
use prometheus_client::registry::Registry;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shared::ids::{NodeName, Role};
use shared::wire::{Hello, close};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, client_of, hello};

const PATIENCE: Duration = Duration::from_secs(60);

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn short_lived(seconds: u64) -> Cluster {
    Cluster::start_with(|config| config.certificates.lifetime_seconds = seconds).await
}

fn request(identity: &Identity, csr_pem: &str) -> Value {
    json!({
        "role": identity.subject.role,
        "node": identity.subject.node,
        "csr_pem": csr_pem,
        "certificate_pem": to_pem([identity.certificate()]),
    })
}

async fn renew(cluster: &Cluster, identity: &Identity) -> (StatusCode, Value) {
    let body = request(identity, &identity.request_again().expect("a key"));
    let path = "/api/stokehold/v1/renew";
    cluster.call("", Method::POST, path, Some(body)).await
}

/// A node as its daemon runs it: a session and the renewal task.
struct Node {
    credentials: Credentials,
    events: tokio::sync::mpsc::Receiver<LinkEvent>,
    /// The session lasts as long as somebody may send.
    _handle: LinkHandle,
    _stop: tokio_util::sync::DropGuard,
}

impl Node {
    async fn join(cluster: &Cluster, name: &str) -> Self {
        let token = cluster.join_token(json!({})).await;
        let identity = cluster.joined(&token, Role::Gateway, name).await;
        let folder = cluster.pki_of(Role::Gateway, name);
        Self::start(cluster, identity, folder)
    }

    fn start(cluster: &Cluster, identity: Identity, folder: std::path::PathBuf) -> Self {
        let credentials = Credentials::new(identity, Some(folder)).expect("usable");
        let cancel = CancellationToken::new();
        let options = LinkOptions {
            addresses: vec![format!("127.0.0.1:{}", cluster.quic.port())],
            credentials: credentials.clone(),
            hello: Arc::new(hello),
        };
        let (handle, events, run) = link(options, cancel.clone());
        tokio::spawn(run);
        let rest = vec![format!("127.0.0.1:{}", cluster.http.port())];
        let renewal = Renewal::new(credentials.clone(), rest, &mut Registry::default());
        let stop = cancel.clone();
        tokio::spawn(async move {
            renewal.if_expired().await;
            renewal.run(stop).await
        });
        Self {
            credentials,
            events,
            _handle: handle,
            _stop: cancel.drop_guard(),
        }
    }

    async fn up(&mut self) {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            match event.expect("in time").expect("runs") {
                LinkEvent::Up(_) => return,
                LinkEvent::Down { .. } | LinkEvent::Frame(_) | LinkEvent::Request { .. } => {}
            }
        }
    }

    /// Whether the session broke since it was last asked.
    fn broke(&mut self) -> Option<String> {
        while let Ok(event) = self.events.try_recv() {
            if let LinkEvent::Down { reason } = event {
                return Some(reason);
            }
        }
        None
    }
}

async fn ca_status(cluster: &Cluster) -> Value {
    cluster
        .done(Method::GET, "/api/stokehold/v1/ca", None)
        .await
}

#[tokio::test]
async fn a_certificate_of_seconds_is_renewed_again_and_again_under_one_session() {
    let cluster = short_lived(12).await;
    let mut node = Node::join(&cluster, "n1").await;
    node.up().await;
    let own = Credentials::new(
        Identity::load(&cluster.config.pki_dir).expect("an identity"),
        None,
    );
    let own_until = own.expect("usable").validity().not_after;
    let key = node.credentials.key_hash().expect("a key");
    let mut last = node.credentials.validity().not_after;
    for _ in 0..3 {
        let until = eventually("a renewal", async || {
            let until = node.credentials.validity().not_after;
            (until > last).then_some(until)
        })
        .await;
        last = until;
        assert!(!node.credentials.is_expired());
    }
    assert_eq!(node.broke(), None, "the session went on");
    assert_eq!(node.credentials.key_hash().expect("a key"), key);
    let kept = Identity::load(&cluster.pki_of(Role::Gateway, "n1")).expect("kept");
    assert_eq!(
        to_pem([kept.certificate()]),
        node.credentials.certificate_pem()
    );
    // The scheduler has renewed its own meanwhile, and serves with it.
    let own = Identity::load(&cluster.config.pki_dir).expect("an identity");
    let renewed = daemon::identity::validity_of(own.certificate()).expect("valid");
    assert!(renewed.not_after > own_until);
    let fresh = client_of(&own.authorities);
    let healthy = fresh.get(cluster.url("/healthz")).send().await;
    assert_eq!(healthy.expect("trusted").status(), StatusCode::OK);
    cluster.stop().await;
}

#[tokio::test]
async fn an_expired_node_renews_before_it_connects() {
    let cluster = short_lived(10).await;
    let token = cluster.join_token(json!({})).await;
    let identity = cluster.joined(&token, Role::Gateway, "n1").await;
    let until = daemon::identity::validity_of(identity.certificate()).expect("valid");
    eventually("the expiry", async || {
        (unix_now() > until.not_after + 1).then_some(())
    })
    .await;
    let folder = cluster.pki_of(Role::Gateway, "n1");
    let mut node = Node::start(&cluster, identity, folder);
    node.up().await;
    assert!(!node.credentials.is_expired());
    cluster.stop().await;
}

#[tokio::test]
async fn another_key_a_foreign_certificate_and_a_revoked_node_are_not_renewed() {
    let cluster = short_lived(3600).await;
    let token = cluster.join_token(json!({})).await;
    let identity = cluster.joined(&token, Role::Gateway, "n1").await;
    let path = "/api/stokehold/v1/renew";
    let refused = |body: Value| async {
        let (status, answer) = cluster.call("", Method::POST, path, Some(body)).await;
        let text = answer["message"].as_str().unwrap_or_default().to_owned();
        (status, text)
    };
    let other_key = request(&identity, &new_request().csr_pem);
    let (status, text) = refused(other_key).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
    assert!(text.contains("its own key"), "{text}");
    let mut other_name = request(&identity, &identity.request_again().expect("a key"));
    other_name["node"] = json!("n2");
    assert_eq!(refused(other_name).await.0, StatusCode::BAD_REQUEST);

    // The same names, signed by somebody else.
    let cluster_id = identity.subject.cluster.clone();
    let stranger = daemon::ca::CertificateAuthority::create(&cluster_id);
    let csr = identity.request_again().expect("a key");
    let forged = stranger.sign(&csr, &identity.subject, &[], Duration::from_secs(60));
    let mut foreign = request(&identity, &csr);
    foreign["certificate_pem"] = json!(forged.expect("signs"));
    let (status, text) = refused(foreign).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        text.contains("no authority that this cluster trusts"),
        "{text}"
    );

    eventually("the spacing to pass", async || {
        let (status, _) = renew(&cluster, &identity).await;
        (status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(
        renew(&cluster, &identity).await.0,
        StatusCode::TOO_MANY_REQUESTS
    );
    let path = "/api/stokehold/v1/nodes/n1/revoke";
    cluster.done(Method::POST, path, None).await;
    let (status, answer) = renew(&cluster, &identity).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .expect("a text")
            .contains("revoked")
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_taken_name_is_refused_and_a_token_made_for_it_replaces_the_keys() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token(json!({})).await;
    let first = cluster.joined(&token, Role::Gateway, "n1").await;
    let name = NodeName::parse("n1").expect("valid");
    let second = cluster.folder.path().join("second");
    let token = cluster.join_token(json!({})).await;
    let taken = join(&token, Role::Gateway, &name, &[], &second).await;
    let text = taken.expect_err("taken").to_string();
    for part in [
        "node n1 already",
        "--replace n1",
        "node revoke n1",
        "--node NAME",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let token = cluster.join_token(json!({"replace": "n1"})).await;
    let other = NodeName::parse("n2").expect("valid");
    let wrong = join(&token, Role::Gateway, &other, &[], &second).await;
    assert!(wrong.is_err(), "it is for n1 alone");
    join(&token, Role::Gateway, &name, &[], &second)
        .await
        .expect("replaces");

    // The machine that holds the older identity is told so, and so is whoever looks at the nodes.
    let session = cluster.session(&first, hello()).await;
    let (code, reason) = session.closed().await;
    assert_eq!(code, u64::from(close::OTHER_KEY));
    assert!(reason.contains("older identity"), "{reason}");
    let second = Identity::load(&second).expect("an identity");
    let mut session = cluster.session(&second, hello()).await;
    session.next().await.expect("welcome");
    cluster.stop().await;
}

#[tokio::test]
async fn of_two_machines_with_one_identity_the_first_keeps_its_session_and_the_second_is_told() {
    let cluster = Cluster::start().await;
    let token = cluster.join_token(json!({})).await;
    let identity = cluster.joined(&token, Role::Gateway, "n1").await;
    let from = |boot: &str| Hello {
        boot: boot.into(),
        ..hello()
    };
    let mut first = cluster.session(&identity, from("a")).await;
    first.next().await.expect("welcome");
    let copy = cluster.session(&identity, from("b")).await;
    let (code, reason) = copy.closed().await;
    assert_eq!(code, u64::from(close::COPIED));
    assert!(
        reason.contains("copied") && reason.contains("--node NAME"),
        "{reason}"
    );
    assert!(
        first.connection.close_reason().is_none(),
        "the first goes on"
    );
    let path = "/api/stokehold/v1/nodes";
    let nodes = cluster.done(Method::GET, path, None).await;
    let problem = nodes["nodes"][0]["problem"].as_str().expect("a problem");
    assert!(
        problem.contains("127.0.0.1") && problem.contains("copied"),
        "{problem}"
    );
    // The same machine takes over as ever, and the other one once the first is gone.
    let mut again = cluster.session(&identity, from("a")).await;
    again.next().await.expect("welcome");
    drop((first, again));
    eventually("the other machine gets in", async || {
        let mut session = cluster.session(&identity, from("b")).await;
        session.next().await.ok()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn the_authority_is_rotated_under_two_nodes_without_a_session_lost() {
    let cluster = short_lived(600).await;
    let (mut n1, mut n2) = (
        Node::join(&cluster, "n1").await,
        Node::join(&cluster, "n2").await,
    );
    n1.up().await;
    n2.up().await;
    let before = cluster.join_token(json!({})).await;
    let old = n1.credentials.issuer().expect("known");
    let old_only = client_of(&n1.credentials.identity().authorities);
    let rotate = "/api/stokehold/v1/ca/rotate";
    cluster.done(Method::POST, rotate, None).await;
    let (status, _) = cluster
        .call(&cluster.admin, Method::POST, rotate, None)
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    eventually("both nodes change over", async || {
        let status = ca_status(&cluster).await;
        let nothing = status["waiting_for"] == json!([]);
        (status["phase"] == "replacing" && nothing).then_some(())
    })
    .await;
    for node in [&mut n1, &mut n2] {
        assert_eq!(node.broke(), None, "no session was lost");
        assert_ne!(node.credentials.issuer().expect("trusted"), old);
        assert_eq!(node.credentials.authorities().len(), 2);
    }
    // Who knows the old authority alone is served until the end: a client, and a token of before.
    let healthy = old_only.get(cluster.url("/healthz")).send().await;
    assert_eq!(healthy.expect("trusted").status(), StatusCode::OK);
    cluster.joined(&before, Role::Gateway, "n3").await;
    let finish = "/api/stokehold/v1/ca/finish";
    let (status, refused) = cluster
        .call(&cluster.admin, Method::POST, finish, Some(json!({})))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    let text = refused["message"].as_str().expect("a text");
    assert!(
        text.contains("gateway n3") && text.contains("--force"),
        "{text}"
    );
    let revoke = "/api/stokehold/v1/nodes/n3/revoke";
    cluster.done(Method::POST, revoke, None).await;
    cluster.done(Method::POST, finish, Some(json!({}))).await;
    eventually("both nodes drop the old authority", async || {
        let dropped = |node: &Node| node.credentials.authorities().len() == 1;
        (dropped(&n1) && dropped(&n2)).then_some(())
    })
    .await;
    for node in [&mut n1, &mut n2] {
        assert_eq!(node.broke(), None, "no session was lost");
    }
    eventually(
        "the old authority alone is not enough any more",
        async || {
            let pinned = before.clone();
            let name = NodeName::parse("n4").expect("valid");
            let folder = cluster.folder.path().join("n4");
            let refused = join(&pinned, Role::Gateway, &name, &[], &folder).await;
            matches!(
                refused,
                Err(JoinError::Call(CallError::OtherAuthority { .. }))
            )
            .then_some(())
        },
    )
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_rotation_goes_on_after_a_restart_and_force_says_who_is_cut_off() {
    let cluster = short_lived(600).await;
    let token = cluster.join_token(json!({})).await;
    let absent = cluster.joined(&token, Role::Gateway, "n1").await;
    let rotate = "/api/stokehold/v1/ca/rotate";
    cluster.done(Method::POST, rotate, None).await;
    let cluster = cluster.restart().await;
    let status = ca_status(&cluster).await;
    assert_eq!(status["phase"], "spreading", "{status}");
    assert_eq!(status["waiting_for"][0]["node"], "n1", "{status}");
    let finish = "/api/stokehold/v1/ca/finish";
    let forced = Some(json!({"force": true}));
    let (code, early) = cluster
        .call(&cluster.admin, Method::POST, finish, forced.clone())
        .await;
    assert_eq!(code, StatusCode::CONFLICT, "{early}");
    // It says that it trusts both, and then never comes to change its certificate.
    let both = status["authorities"].as_array().expect("a list").iter();
    let both = both.map(|it| it["sha256"].as_str().expect("a text").to_owned());
    let seen = Hello {
        authorities: both.collect(),
        ..hello()
    };
    let mut session = cluster.session(&absent, seen).await;
    session.next().await.expect("welcome");
    eventually("the new authority signs", async || {
        (ca_status(&cluster).await["phase"] == "replacing").then_some(())
    })
    .await;
    let cluster = cluster.restart().await;
    let finished = cluster.done(Method::POST, finish, forced).await;
    assert_eq!(finished["cut_off"][0]["node"], "n1", "{finished}");
    let (status, answer) = renew(&cluster, &absent).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let text = answer["message"].as_str().expect("a text");
    assert!(text.contains("--replace n1"), "{text}");
    cluster.stop().await;
}
