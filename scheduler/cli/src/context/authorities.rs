//! Keeps a context's copy of the cluster's authorities up to date: while one authority takes over
//! from another, a server that is trusted by the copy so far says what is trusted now.
//!
//! A file that holds anything else than authorities of that very cluster is the user's own, and is
//! left alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use daemon::ca::{AUTHORITY_NAME, hex_of};
use daemon::identity::{certificates_in, common_name_of};
use rustls_pki_types::CertificateDer;
use shared::api::certificates::{CaBundle, bundle_id};

use crate::client::{Call, Client};
use crate::context::Resolved;
use crate::output::Output;

/// Renews the copy, if the server has said that it is old. What fails is told, and harms nothing.
pub(crate) async fn keep_up(client: &Client, context: &Resolved, output: &Output) {
    let (Some(told), Some(path)) = (client.authorities_told(), &context.ca_file) else {
        return;
    };
    let Ok(held) = read(path) else { return };
    if id_of(&held) == told {
        return;
    }
    let Ok(bundle) = client
        .call::<CaBundle>(Call::get("/api/stokehold/v1/ca/bundle"))
        .await
    else {
        return;
    };
    let Ok(offered) = certificates_in(bundle.ca_pem.as_bytes()) else {
        return;
    };
    if !succeeds(&held, &offered) {
        return;
    }
    let shown = path.display();
    let mode = std::fs::metadata(path).map_or(0o600, |it| it.permissions().mode() & 0o777);
    match daemon::files::write_atomic(path, bundle.ca_pem.as_bytes(), mode) {
        Ok(()) => output.note(format!(
            "the cluster's authorities have changed, and {shown} with them"
        )),
        Err(error) => output.warn(format!(
            "the cluster's authorities have changed, but {shown} cannot be written ({error}): copy \
             ca.pem of the scheduler's pki folder there before the rotation is finished"
        )),
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates_in(&std::fs::read(path).map_err(|e| e.to_string())?)
}

fn id_of(authorities: &[CertificateDer<'static>]) -> String {
    bundle_id(authorities.iter().map(|it| hex_of(it)))
}

/// Whether `offered` takes the place of `held`: all are authorities of one cluster, and at least one
/// is in both.
fn succeeds(held: &[CertificateDer<'static>], offered: &[CertificateDer<'static>]) -> bool {
    let Some(name) = held.first().and_then(|it| common_name_of(it)) else {
        return false;
    };
    name.starts_with(AUTHORITY_NAME)
        && held
            .iter()
            .chain(offered)
            .all(|it| common_name_of(it).as_deref() == Some(&name))
        && held.iter().any(|it| offered.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::ca::CertificateAuthority;
    use shared::ids::ClusterId;

    #[test]
    fn only_authorities_of_the_same_cluster_that_overlap_take_each_others_place() {
        let made = |bits| {
            let ca = CertificateAuthority::create(&ClusterId::from_bits(bits));
            ca.certificate().clone()
        };
        let (old, new, foreign) = (made(1), made(1), made(2));
        let both = [old.clone(), new.clone()];
        assert!(succeeds(std::slice::from_ref(&old), &both));
        assert!(succeeds(&both, std::slice::from_ref(&new)));
        assert!(!succeeds(std::slice::from_ref(&old), &[new]));
        assert!(!succeeds(&[old.clone(), foreign], &[old]));
    }
}
