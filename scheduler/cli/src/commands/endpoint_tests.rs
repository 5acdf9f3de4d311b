//! Endpoints as they are shown.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::commands::fixtures::{description, replica, summary as listed};

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

#[test]
fn the_list_says_what_serves_and_what_is_under_way() {
    let endpoints = [
        listed("iris", "READY", "NOT_UPDATING"),
        listed("churn", "READY", "IN_PROGRESS"),
        listed("new", "NOT_READY", "IN_PROGRESS"),
        listed("broken", "NOT_READY", "UPDATE_FAILED"),
    ];
    insta::assert_snapshot!(list_table(&endpoints, now()).render(None, false));
}

#[test]
fn an_endpoint_shows_its_states_and_times() {
    insta::assert_snapshot!(summary(&description("IN_PROGRESS").endpoint, now()));
}

#[test]
fn a_served_entity_shows_its_bounds_share_and_message() {
    let endpoint = description("IN_PROGRESS").endpoint;
    let config = endpoint.pending_config.expect("a pending configuration");
    insta::assert_snapshot!(entity_table(&config).render(None, false));
}

#[test]
fn replicas_show_where_they_are_and_why() {
    let replicas = [
        replica(1, "ready", ""),
        replica(2, "fetching-model", "12 MiB of 40 MiB"),
        replica(3, "failed", "exit 137: out of memory"),
    ];
    insta::assert_snapshot!(replica_table(&replicas).render(None, false));
}

#[test]
fn a_decision_carries_its_reason() {
    let decisions = description("NOT_UPDATING").decisions;
    insta::assert_snapshot!(decision_table(&decisions).render(None, false));
}
