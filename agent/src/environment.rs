//! The environment variables of a replica's process. Pure.

use std::collections::BTreeMap;

use shared::plan::{PlannedImage, PlannedReplica};
use shared::runtime::{REPLICA_FOLDER, REPLICA_SOCKET, Transport};

/// How many threads numeric libraries start. They would take one for each core of the machine, since
/// they do not look at the quota that they run under, and then be held back for most of each period.
const THREADS: [&str; 3] = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("environment variable {name:?} holds a zero byte or has no name")]
pub struct EnvironmentError {
    name: String,
}

/// The image's variables, then our defaults, then the template's and the served entity's, then what
/// is always ours; the later of two wins.
pub fn of(replica: &PlannedReplica, image: &PlannedImage) -> Result<Vec<String>, EnvironmentError> {
    let container = &replica.container;
    let mut variables: BTreeMap<&str, &str> = BTreeMap::new();
    for entry in &image.environment {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        variables.insert(name, value);
    }
    // The root is read-only, and an image's HOME is seldom a folder that this user may write to.
    variables.insert("HOME", "/tmp");
    let threads = container.resources.cpu_millis.div_ceil(1000).max(1);
    let threads = threads.to_string();
    variables.extend(THREADS.map(|name| (name, threads.as_str())));
    for (name, value) in &container.environment {
        variables.insert(name, value);
    }
    let socket = format!("{REPLICA_FOLDER}/{REPLICA_SOCKET}");
    let port = container.port.map(|port| port.to_string());
    match (container.transport, &port) {
        (Transport::Tcp, Some(port)) => variables.insert("STOKEHOLD_PORT", port),
        (Transport::Tcp | Transport::Unix, _) => variables.insert("STOKEHOLD_SOCKET", &socket),
    };
    variables.insert("STOKEHOLD_MODEL_DIR", &container.model_mount);
    variables.insert("STOKEHOLD_REPLICA", replica.id.as_str());
    variables.insert("STOKEHOLD_ENDPOINT", replica.endpoint.as_str());
    for (name, value) in &variables {
        if name.is_empty() || name.contains(['\0', '=']) || value.contains('\0') {
            let name = name.chars().take(80).collect();
            return Err(EnvironmentError { name });
        }
    }
    Ok(variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{planned_image, planned_replica};

    fn has(replica: &PlannedReplica, want: &[&str]) {
        let got = of(replica, &planned_image()).expect("valid");
        for want in want {
            assert!(got.iter().any(|v| v == want), "{want} is not in {got:?}");
        }
    }

    #[test]
    fn ours_win_over_the_templates_variables_and_those_over_the_images() {
        let mut replica = planned_replica(1);
        let environment = &mut replica.container.environment;
        environment.insert("PATH".into(), "/opt/bin".into());
        environment.insert("STOKEHOLD_REPLICA".into(), "another".into());
        has(
            &replica,
            &[
                "PATH=/opt/bin",
                "HOME=/tmp",
                "LEVEL=warn",
                "STOKEHOLD_REPLICA=0000000000000001",
                "STOKEHOLD_SOCKET=/run/stokehold/http.sock",
            ],
        );
    }

    #[test]
    fn a_replica_that_listens_on_tcp_is_told_its_port_instead_of_a_socket() {
        let mut replica = planned_replica(1);
        replica.container.transport = Transport::Tcp;
        replica.container.port = Some(8080);
        has(&replica, &["STOKEHOLD_PORT=8080"]);
        let got = of(&replica, &planned_image()).expect("valid");
        assert!(!got.iter().any(|v| v.starts_with("STOKEHOLD_SOCKET=")));
    }

    #[test]
    fn numeric_libraries_get_a_thread_for_each_core_begun() {
        let mut replica = planned_replica(1);
        for (cpu_millis, threads) in [(1, 1), (500, 1), (1000, 1), (1001, 2), (8000, 8)] {
            replica.container.resources.cpu_millis = cpu_millis;
            for name in THREADS {
                has(&replica, &[&format!("{name}={threads}")]);
            }
        }
    }

    #[test]
    fn thread_counts_that_somebody_set_stay() {
        let mut replica = planned_replica(1);
        let environment = &mut replica.container.environment;
        environment.insert("OMP_NUM_THREADS".into(), "7".into());
        has(&replica, &["OMP_NUM_THREADS=7", "MKL_NUM_THREADS=1"]);
    }

    #[test]
    fn what_the_kernel_would_cut_is_refused() {
        let mut replica = planned_replica(1);
        let environment = &mut replica.container.environment;
        environment.insert("A".into(), "\0".into());
        let refused = of(&replica, &planned_image());
        assert_eq!(refused, Err(EnvironmentError { name: "A".into() }));
    }
}
