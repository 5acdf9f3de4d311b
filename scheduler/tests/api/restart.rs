use reqwest::{Method, StatusCode};
use scheduler::boot;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, config_in};

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_in_a_higher_epoch() {
    let cluster = Cluster::start().await;
    let token = cluster.token("ci", "manage").await;
    let (epoch, name) = (cluster.epoch, cluster.admin.clone());
    let cluster = cluster.restart().await;
    assert!(cluster.epoch > epoch);
    assert_eq!(cluster.admin, name, "the first admin token is made once");
    let (status, me) = cluster
        .call(&token, Method::GET, "/api/stokehold/v1/whoami", None)
        .await;
    assert_eq!((status, &me["name"]), (StatusCode::OK, &json!("ci")));
}

#[tokio::test]
async fn a_lost_admin_token_is_replaced_on_demand_only() {
    let cluster = Cluster::start().await;
    let old = cluster.admin.clone();
    let (folder, config) = cluster.stop().await;
    let file = config.data_dir.join("admin.token");
    std::fs::remove_file(&file).expect("removes");
    let cancel = CancellationToken::new();
    let running = boot::start(config.clone(), cancel.clone()).await;
    let running = running.expect("starts without the file");
    assert!(!file.exists(), "it is not silently made anew");
    let locked = boot::reset_admin_token(&config).expect_err("the store is in use");
    assert!(format!("{locked:#}").contains("in use"), "{locked:#}");
    cancel.cancel();
    running.wait().await.expect("stops");
    boot::reset_admin_token(&config).expect("resets");
    let new = std::fs::read_to_string(&file).expect("reads");
    assert_ne!(new.trim(), old);
    drop(folder);
}

#[tokio::test]
async fn half_of_a_cluster_is_an_error_and_never_made_anew() {
    let cluster = Cluster::start().await;
    let (folder, config) = cluster.stop().await;
    let aside = folder.path().join("aside");
    for (gone, expected) in [
        (&config.pki_dir, "certificate authority is not in"),
        (&config.data_dir, "holds no cluster"),
    ] {
        std::fs::rename(gone, &aside).expect("moves");
        let started = boot::start(config.clone(), CancellationToken::new()).await;
        let error = started.err().expect("refuses");
        assert!(format!("{error:#}").contains(expected), "{error:#}");
        // What the refused start made of an empty folder is nothing to keep.
        let _ = std::fs::remove_dir_all(gone);
        std::fs::rename(&aside, gone).expect("moves back");
    }
}

#[tokio::test]
async fn a_broken_configuration_or_template_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let mut config = config_in(folder.path());
    boot::check(&config).expect("is fine");
    let template = config.runtimes_dirs[0].join("broken.toml");
    std::fs::write(&template, "name = \"x\"\nimage = 1\n").expect("writes");
    let error = format!("{:#}", boot::check(&config).expect_err("is broken"));
    assert!(
        error.contains("broken.toml") && error.contains("line 2"),
        "{error}"
    );
    std::fs::remove_file(template).expect("removes");
    config.advertise = vec!["a b".into()];
    let error = format!("{:#}", boot::check(&config).expect_err("is broken"));
    assert!(error.contains("advertise"), "{error}");
    assert!(!config.data_dir.exists(), "a check changes nothing");
}
