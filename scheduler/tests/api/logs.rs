use reqwest::{Method, StatusCode};

use crate::cluster::Cluster;

#[tokio::test]
async fn logs_of_what_does_not_exist_are_not_found() {
    let cluster = Cluster::start().await;
    for path in [
        "/api/stokehold/v1/endpoints/none/logs?follow=true",
        "/api/2.0/serving-endpoints/none/served-models/m/logs",
    ] {
        let (status, body) = cluster.call(&cluster.admin, Method::GET, path, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
        assert_eq!(body["error_code"], "RESOURCE_DOES_NOT_EXIST");
    }
    let path = "/api/stokehold/v1/endpoints/none/logs?replica=zz";
    let (status, body) = cluster.call(&cluster.admin, Method::GET, path, None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
}
