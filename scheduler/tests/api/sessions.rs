use daemon::ca::CertificateAuthority;
use daemon::identity::{Identity, Subject, new_request};
use daemon::quic;
use reqwest::Method;
use serde_json::json;
use shared::ids::{ClusterId, NodeName, Role};
use shared::report::GatewayReport;
use shared::wire::{
    ClientBody, GatewayReportMessage, Hello, ServerBody, StreamRequest, Welcome, close,
};

use crate::cluster::{Cluster, Session, hello};

async fn welcome(session: &mut Session) -> Welcome {
    match session.next().await.expect("a frame").body {
        Some(ServerBody::Welcome(welcome)) => welcome,
        other => panic!("not a welcome: {other:?}"),
    }
}

async fn two_roles(cluster: &Cluster) -> (Identity, Identity) {
    let token = cluster.join_token(json!({})).await;
    let agent = cluster.joined(&token, Role::Agent, "n1").await;
    let gateway = cluster.joined(&token, Role::Gateway, "n1").await;
    (agent, gateway)
}

#[tokio::test]
async fn a_gateway_gets_routes_with_every_token_and_newer_ones_when_tokens_change() {
    let cluster = Cluster::start().await;
    let (_, gateway) = two_roles(&cluster).await;
    let mut session = cluster.session(&gateway, hello()).await;
    let welcome = welcome(&mut session).await;
    assert_eq!(welcome.epoch, cluster.epoch.0);
    let mut seen = 0;
    let mut wanted = 1;
    // Routes come as often as they change; what counts is that the newest ones know every token.
    while wanted <= 2 {
        let frame = session.next().await.expect("a frame");
        let Some(ServerBody::Routes(routes)) = frame.body else {
            panic!("not routes: {frame:?}");
        };
        let routes = shared::routes::Routes::try_from(routes).expect("valid");
        assert!(routes.revision.0 >= seen, "routes go forward");
        seen = routes.revision.0;
        if routes.tokens.len() == wanted {
            wanted += 1;
            if wanted == 2 {
                cluster.token("ci", "manage").await;
            }
        }
    }
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_stays_out() {
    let cluster = Cluster::start().await;
    let (agent, gateway) = two_roles(&cluster).await;
    let mut session = cluster.session(&agent, hello()).await;
    welcome(&mut session).await;
    cluster
        .done(Method::POST, "/api/stokehold/v1/nodes/n1/revoke", None)
        .await;
    assert_eq!(session.closed().await.0, u64::from(close::REVOKED));
    for identity in [agent, gateway] {
        let again = cluster.session(&identity, hello()).await;
        let (code, reason) = again.closed().await;
        assert_eq!(code, u64::from(close::REVOKED));
        assert!(reason.contains("revoked"), "{reason}");
    }
    let nodes = cluster
        .done(Method::GET, "/api/stokehold/v1/nodes", None)
        .await;
    assert_eq!(nodes["nodes"][0]["state"], "revoked", "{nodes}");
}

#[tokio::test]
async fn a_newer_session_of_a_node_replaces_the_older() {
    let cluster = Cluster::start().await;
    let (agent, _) = two_roles(&cluster).await;
    let mut first = cluster.session(&agent, hello()).await;
    welcome(&mut first).await;
    let mut second = cluster.session(&agent, hello()).await;
    welcome(&mut second).await;
    assert_eq!(first.closed().await.0, u64::from(close::REPLACED));
    let nodes = cluster
        .done(Method::GET, "/api/stokehold/v1/nodes", None)
        .await;
    assert_eq!(nodes["nodes"][0]["agent_connected"], true, "{nodes}");
}

#[tokio::test]
async fn who_has_no_place_here_is_told_why() {
    let cluster = Cluster::start().await;
    let (agent, _) = two_roles(&cluster).await;

    let scheduler = Identity::load(&cluster.config.pki_dir).expect("an identity");
    let session = cluster.session(&scheduler, hello()).await;
    assert_eq!(session.closed().await.0, u64::from(close::WRONG_ROLE));

    let newer = Hello {
        protocol_min: 99,
        protocol_max: 99,
        ..hello()
    };
    let session = cluster.session(&agent, newer).await;
    let (code, reason) = session.closed().await;
    assert_eq!(code, u64::from(close::VERSION));
    assert!(reason.contains("99"), "{reason}");

    let mut session = cluster.session(&agent, hello()).await;
    welcome(&mut session).await;
    let report = GatewayReportMessage::from(&GatewayReport::default());
    session.send(ClientBody::GatewayReport(report)).await;
    assert_eq!(session.closed().await.0, u64::from(close::WRONG_ROLE));

    let foreign = foreign_identity(&cluster);
    let session = cluster.session(&foreign, hello()).await;
    assert_eq!(session.closed().await.0, u64::from(close::OTHER_CLUSTER));
}

/// Signed by this cluster's CA for another cluster, as after a copied `pki_dir`.
fn foreign_identity(cluster: &Cluster) -> Identity {
    let other = ClusterId::from_bits(7);
    let pki = &cluster.config.pki_dir;
    let authority = CertificateAuthority::load(pki, &other).expect("loads");
    let request = new_request();
    let subject = Subject {
        cluster: other,
        role: Role::Agent,
        node: NodeName::parse("n9").expect("valid"),
    };
    let day = std::time::Duration::from_secs(86_400);
    let signed = authority.sign(&request.csr_pem, &subject, &[], day);
    let folder = cluster.pki_of(Role::Agent, "n9");
    let ca = authority.certificate_pem();
    Identity::save(&folder, &signed.expect("signs"), &request.key_pem, ca).expect("saves");
    Identity::load(&folder).expect("loads")
}

#[tokio::test]
async fn an_epoch_that_a_node_has_seen_is_overtaken_by_a_restart() {
    let cluster = Cluster::start().await;
    let (agent, _) = two_roles(&cluster).await;
    let absurd = Hello {
        highest_epoch: u64::MAX,
        ..hello()
    };
    let session = cluster.session(&agent, absurd).await;
    assert_eq!(session.closed().await.0, u64::from(close::PROTOCOL));
    let seen = Hello {
        highest_epoch: 40,
        ..hello()
    };
    let session = cluster.session(&agent, seen).await;
    assert_eq!(session.closed().await.0, u64::from(close::GOING_AWAY));
    let (error, folder, config) = cluster.ended().await;
    assert!(error.contains("epoch 40"), "{error}");
    let cancel = tokio_util::sync::CancellationToken::new();
    let running = scheduler::boot::start(config, cancel.clone()).await;
    let running = running.expect("starts again");
    assert_eq!(running.epoch.0, 41);
    cancel.cancel();
    running.wait().await.expect("stops");
    drop(folder);
}

#[tokio::test]
async fn requests_are_for_the_roles_that_need_them() {
    let cluster = Cluster::start().await;
    let (agent, gateway) = two_roles(&cluster).await;
    let mut session = cluster.session(&gateway, hello()).await;
    welcome(&mut session).await;
    let digest = shared::digest::Digest::of(b"x");
    let patience = std::time::Duration::from_secs(5);
    let fetch = StreamRequest::fetch_chunk(digest);
    let refused = quic::request(&session.connection, &fetch, patience).await;
    let refused = refused.expect_err("not for gateways").to_string();
    assert!(refused.contains("not for your role"), "{refused}");
    let mut session = cluster.session(&agent, hello()).await;
    welcome(&mut session).await;
    let missing = quic::request(&session.connection, &fetch, patience).await;
    assert!(
        matches!(
            missing,
            Err(quic::RequestError::Refused {
                not_found: true,
                ..
            })
        ),
        "a chunk that is not there is not found"
    );
}
