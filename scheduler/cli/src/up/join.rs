//! Agent and gateway join as on any other machine: by a one-time token, on standard input.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use daemon::identity::{self, Identity};
use shared::api::NodeList;
use shared::ids::Role;
use tokio::io::AsyncWriteExt as _;

use super::plan::Plan;
use super::service::Program;
use crate::client::{Call, Client};
use crate::commands::node::create_token;
use crate::context::read_token;

const TOKEN_LIFETIME: Duration = Duration::from_secs(120);

/// A daemon renews its certificate by itself, for a month after its end too; one that expired longer
/// ago is made anew.
const RENEWABLE_FOR: Duration = Duration::from_secs(29 * 24 * 3600);

/// As the admin that the scheduler made at its first start.
pub(super) fn admin(plan: &Plan) -> anyhow::Result<Client> {
    let (token, _) = read_token(&plan.layout.admin_token())?;
    Client::new(&plan.server(), Some(&plan.layout.ca()), Some(token))
}

/// Gives each of `programs` an identity, unless it has one that still fits.
pub(super) async fn join(plan: &Plan, programs: [(Role, &Program); 2]) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let lacking: Vec<(Role, &Program)> = programs
        .into_iter()
        .filter(|(role, _)| !fits(*role, plan, now))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let roles = lacking.iter().map(|(role, _)| *role).collect();
    let admin = admin(plan)?;
    let nodes: NodeList = admin
        .call(Call::get("/api/stokehold/v1/nodes"))
        .await
        .context("ask for the nodes")?;
    let known = nodes.nodes.iter().any(|node| node.name == plan.node);
    let replace = known.then(|| plan.node.clone());
    let token = create_token(&admin, roles, TOKEN_LIFETIME, replace)
        .await
        .context("make a join token")?
        .token;
    for (role, program) in lacking {
        // An agent is called by nobody from outside, and has no names.
        let names = match role {
            Role::Gateway => plan.names.as_slice(),
            Role::Agent | Role::Scheduler => &[],
        };
        redeem(program, names, &token)
            .await
            .with_context(|| format!("join the {role}"))?;
    }
    Ok(())
}

async fn redeem(program: &Program, names: &[String], token: &str) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::from(program.command());
    command
        .args(&program.arguments)
        .args(["join", "--token-file", "-"])
        .args(names.iter().flat_map(|name| ["--name", name]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", program.path.display()))?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A program that ends early closes its end; its own message says why.
    let _ = stdin.write_all(token.as_bytes()).await;
    drop(stdin);
    let ended = child.wait_with_output().await?;
    anyhow::ensure!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr).trim()
    );
    Ok(())
}

/// Whether the identity on disk is of this node, this role and this scheduler's CA, lasts, and, for
/// a gateway, names the addresses that clients use.
fn fits(role: Role, plan: &Plan, now: SystemTime) -> bool {
    let folder = plan.layout.pki(role.as_str());
    let Ok(found) = Identity::load(&folder) else {
        return false;
    };
    // During a rotation there are two.
    let ours = std::fs::read(plan.layout.ca()).unwrap_or_default();
    let ours = identity::certificates_in(&ours).unwrap_or_default();
    let same_ca = found.authorities.iter().any(|it| ours.contains(it));
    let names = identity::names_of(found.certificate()).unwrap_or_default();
    let named = role != Role::Gateway || plan.names.iter().all(|name| names.contains(name));
    found.subject.node == plan.node
        && found.subject.role == role
        && same_ca
        && named
        && lasts(&found, now)
}

fn lasts(found: &Identity, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    identity::validity_of(found.certificate()).is_ok_and(|validity| {
        u64::try_from(validity.not_after).is_ok_and(|until| until + RENEWABLE_FOR.as_secs() > now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::ca::CertificateAuthority;
    use daemon::identity::{Subject, new_request};
    use shared::ids::ClusterId;

    #[test]
    fn an_identity_lasts_as_long_as_it_can_be_renewed() {
        let day = Duration::from_secs(24 * 3600);
        let folder = tempfile::tempdir().expect("folder");
        let ca = CertificateAuthority::create(&ClusterId::from_bits(1));
        let subject = Subject {
            cluster: ca.cluster().clone(),
            role: Role::Agent,
            node: "n1".parse().expect("name"),
        };
        let request = new_request();
        let certificate = ca
            .sign(&request.csr_pem, &subject, &[], day * 100)
            .expect("signed");
        let ca_pem = ca.certificate_pem();
        Identity::save(folder.path(), &certificate, &request.key_pem, ca_pem).expect("saved");
        let found = Identity::load(folder.path()).expect("loaded");
        let now = SystemTime::now();
        assert!(lasts(&found, now));
        assert!(lasts(&found, now + day * 128));
        assert!(!lasts(&found, now + day * 130));
    }
}
