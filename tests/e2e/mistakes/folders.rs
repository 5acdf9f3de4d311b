//! Folders that are no models, not whole, not readable, or not still.

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

use super::{STEADY, There, deploy_steady, nothing_is_left, run, server};
use crate::harness::Cluster;

const MLMODEL: &str = "\
flavors:
  python_function:
    loader_module: mlflow.sklearn
    model_path: model.pkl
  sklearn:
    pickled_model: model.pkl
mlflow_version: 3.17.2
";

/// A model as MLflow writes it, in a folder that may be spoilt.
fn mlflow_model(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder.join("sub")).expect("folder");
    fs::write(folder.join("MLmodel"), MLMODEL).expect("file");
    fs::write(folder.join("model.pkl"), "weights").expect("file");
    fs::write(folder.join("sub/more"), "more").expect("file");
}

fn rewrite(folder: &Path, from: &str, to: &str) {
    let text = MLMODEL.replace(from, to);
    assert_ne!(text, MLMODEL);
    fs::write(folder.join("MLmodel"), text).expect("file");
}

/// What is done to a model while it is pushed, and what that is called.
type Change = (fn(&Path), &'static str);

/// What is done to a model, and what the push has to say then.
type Mistake = (fn(&Path), &'static [&'static str]);

const MISTAKES: &[Mistake] = &[
    (
        |folder| rewrite(folder, "  sklearn:\n", "  sklearn: [unclosed\n"),
        &[
            "bad/MLmodel is not a valid MLmodel file",
            "line ",
            "hint: mend the line",
        ],
    ),
    (
        |folder| {
            rewrite(
                folder,
                "pickled_model: model.pkl",
                "pickled_model: gone.pkl",
            )
        },
        &[
            "bad/MLmodel: line 6: flavor \"sklearn\" names pickled_model \"gone.pkl\", which is not in the folder",
            "hint: save the model again with mlflow.FLAVOR.save_model",
        ],
    ),
    (
        |folder| fs::remove_file(folder.join("model.pkl")).expect("removed"),
        &[
            "line 4: flavor \"python_function\" names model_path \"model.pkl\"",
            "hint: ",
        ],
    ),
    (
        |folder| rewrite(folder, "    loader_module: mlflow.sklearn\n", ""),
        &[
            "line 2: flavor \"python_function\" names no loader_module",
            "hint: ",
        ],
    ),
    (
        |folder| fs::write(folder.join("MLmodel"), "flavors: {}\n").expect("file"),
        &["bad/MLmodel: names no flavor under `flavors`", "hint: "],
    ),
    (
        |folder| fs::write(folder.join("MLmodel"), b"\xff\xfe").expect("file"),
        &["is not text in UTF-8", "hint: "],
    ),
    (
        |folder| {
            fs::remove_file(folder.join("MLmodel")).expect("removed");
            fs::write(folder.join("python_env.yaml"), "").expect("file");
        },
        &[
            "holds \"python_env.yaml\", which MLflow writes, but no MLmodel file",
            "hint: push the folder",
        ],
    ),
    (
        |folder| symlink("/etc/hostname", folder.join("out")).expect("link"),
        &[
            "bad/out\" is a link to \"/etc/hostname\", which is outside the folder",
            "hint: copy the model with `cp -rL",
        ],
    ),
    (
        |folder| symlink("nowhere", folder.join("sub/dangling")).expect("link"),
        &[
            "sub/dangling\" is a link to \"nowhere\", which does not exist",
            "hint: remove the link",
        ],
    ),
    (
        |folder| symlink("..", folder.join("sub/up")).expect("link"),
        &[
            "sub/up\" is a link that leads back to itself",
            "hint: remove the link",
        ],
    ),
    (
        |folder| symlink("itself", folder.join("itself")).expect("link"),
        &[
            "bad/itself\" is a link that leads back to itself",
            "hint: remove the link",
        ],
    ),
    (
        |folder| drop(std::os::unix::net::UnixListener::bind(folder.join("s")).expect("socket")),
        &["bad/s\" is a socket, not a file", "hint: remove it"],
    ),
    (
        |folder| nix::unistd::mkfifo(&folder.join("p"), Mode::S_IRUSR).expect("pipe"),
        &["bad/p\" is a named pipe, not a file", "hint: remove it"],
    ),
    (
        |folder| {
            mknod(
                &folder.join("null"),
                SFlag::S_IFCHR,
                Mode::S_IRUSR,
                makedev(1, 3),
            )
            .expect("device");
        },
        &["bad/null\" is a device, not a file", "hint: remove it"],
    ),
    (
        |folder| fs::create_dir(folder.join("sub/empty")).expect("folder"),
        &[
            "sub/empty\" is empty, and a model holds only files",
            "hint: remove it",
        ],
    ),
    (
        |folder| fs::write(folder.join("two\nlines"), "").expect("file"),
        &[
            "the name of ",
            "two\\nlines\" cannot stand in a manifest",
            "hint: rename it",
        ],
    ),
    (
        |folder| fs::write(folder.join(OsStr::from_bytes(b"\xff")), "").expect("file"),
        &["is not UTF-8", "hint: rename it"],
    ),
    (
        |folder| fs::remove_dir_all(folder).expect("removed"),
        &["bad\" does not exist", "hint: name the folder"],
    ),
    (
        |folder| {
            fs::create_dir(folder.join("many")).expect("folder");
            for n in 0..100_000 {
                fs::hard_link(folder.join("MLmodel"), folder.join(format!("many/{n}")))
                    .or_else(|_| fs::write(folder.join(format!("many/{n}")), ""))
                    .expect("file");
            }
        },
        &["holds more than 100000 files", "hint: push the model alone"],
    ),
];

#[test]
fn a_folder_that_is_no_model_is_refused_at_the_push_with_how_to_mend_it() {
    let cluster = Cluster::start();
    deploy_steady(&cluster);
    let before = There::in_cluster(&cluster);
    let folder = cluster.base().join("bad");
    let shown = folder.display().to_string();
    let push = ["model", "push", &shown, "--name", "bad"];
    for (spoil, wanted) in MISTAKES {
        mlflow_model(&folder);
        spoil(&folder);
        run(&cluster, &push).says(1, wanted);
    }
    // One who may not read all of it.
    mlflow_model(&folder);
    fs::set_permissions(folder.join("model.pkl"), fs::Permissions::from_mode(0o600)).expect("mode");
    as_nobody(&cluster, &push).says(
        1,
        &["model.pkl", "Permission denied", "hint: let whoever pushes"],
    );
    nothing_is_left(&cluster, &before);

    // In JSON the same is one object.
    fs::write(folder.join("MLmodel"), "flavors: {}\n").expect("file");
    let told = run(&cluster, &[&push[..], &["--output", "json"]].concat());
    let error = told.error();
    assert_eq!(told.stderr.lines().count(), 1, "{}", told.stderr);
    assert_eq!(
        (&error["code"], &error["exit_code"]),
        (&json!("INVALID_FOLDER"), &json!(1))
    );
    assert!(
        error["hint"]
            .as_str()
            .expect("hint")
            .starts_with("save the model again")
    );

    // What is not MLflow's is taken with a warning, and deployed by the name of a runtime only.
    for (files, warned, refused) in [
        (
            &["weights.bin"][..],
            "it holds no MLmodel file",
            "holds no MLmodel file to choose a runtime by",
        ),
        (
            &["MLmodel", "m.onnx"][..],
            "names onnx and no python_function",
            "has only onnx: save it again",
        ),
    ] {
        fs::remove_dir_all(&folder).expect("removed");
        fs::create_dir(&folder).expect("folder");
        for file in files {
            fs::write(folder.join(file), "flavors: {onnx: {data: m.onnx}}\n").expect("file");
        }
        let pushed = run(&cluster, &push);
        assert_eq!(pushed.code, Some(0), "{}", pushed.stderr);
        assert!(pushed.stderr.contains("warning: "), "{}", pushed.stderr);
        assert!(pushed.stderr.contains(warned), "{}", pushed.stderr);
        let version = pushed
            .stdout
            .split(':')
            .next()
            .expect("NAME/VERSION")
            .to_owned();
        let deploy = ["deploy", "bad", "--model", &version];
        run(&cluster, &deploy).says(1, &["served_entities[0].stokehold.runtime", refused]);
        run(&cluster, &[&deploy[..], &["--runtime", "mlflow"]].concat())
            .says(1, &["mlflow serves the python_function flavor"]);
        cluster.cli(&["model", "delete", &version, "--yes"]);
    }
    nothing_is_left(&cluster, &before);
    cluster.finish();
}

/// Runs `stokehold` as a user who owns nothing, with the admin's token.
fn as_nobody(cluster: &Cluster, arguments: &[&str]) -> super::Told {
    let context = cluster.context();
    let copy = |key: &str| {
        let copy = cluster.base().join(format!("{key}-of-nobody"));
        fs::copy(context[key].as_str().expect("path"), &copy).expect("copied");
        std::os::unix::fs::chown(&copy, Some(65534), Some(65534)).expect("owner");
        copy
    };
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(cluster.base().join("bin/stokehold"))
        .args(["--server", context["server"].as_str().expect("server")])
        .arg("--ca-file")
        .arg(copy("ca_file"))
        .arg("--token-file")
        .arg(copy("token_file"))
        .args(arguments)
        .env("HOME", "/nonexistent")
        .output()
        .expect("setpriv runs");
    super::Told::of(&output)
}

#[test]
fn a_folder_that_changes_during_the_push_is_not_registered() {
    let cluster = Cluster::start();
    deploy_steady(&cluster);
    let before = There::in_cluster(&cluster);
    let folder = cluster.base().join("restless");
    let changes: [Change; 5] = [
        (
            |folder| fs::write(folder.join("model.pkl"), "more weights").expect("file"),
            "model.pkl\" was written to during the push",
        ),
        (
            |folder| fs::write(folder.join("model.pkl"), "we").expect("file"),
            "model.pkl\" shrank from 7 to 2 bytes during the push",
        ),
        (
            |folder| {
                use std::io::Write as _;
                let file = fs::OpenOptions::new()
                    .append(true)
                    .open(folder.join("sub/more"));
                file.expect("opened")
                    .write_all(b" and more")
                    .expect("written");
            },
            "sub/more\" grew from 4 to 13 bytes during the push",
        ),
        (
            |folder| {
                fs::copy(folder.join("model.pkl"), folder.with_extension("new")).expect("copied");
                fs::rename(folder.with_extension("new"), folder.join("model.pkl"))
                    .expect("renamed");
            },
            "model.pkl\" was replaced by another file during the push",
        ),
        (
            |folder| fs::remove_file(folder.join("model.pkl")).expect("removed"),
            "model.pkl\" was removed during the push",
        ),
    ];
    for (change, wanted) in changes {
        mlflow_model(&folder);
        let told = push_through(&cluster, &folder, || change(&folder));
        told.says(
            1,
            &[
                wanted,
                "hint: nothing was registered: wait until whoever writes",
            ],
        );
        nothing_is_left(&cluster, &before);
    }
    // Left alone, the same way leads to a model.
    mlflow_model(&folder);
    assert_eq!(push_through(&cluster, &folder, || ()).code, Some(0));
    cluster.finish();
}

/// A push by way of a port of ours: everything was hashed before it first connects, and nothing was
/// sent yet. That is when `meanwhile` happens.
fn push_through(cluster: &Cluster, folder: &Path, meanwhile: impl FnOnce()) -> super::Told {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let context = cluster.context();
    let real = context["server"].as_str().expect("server");
    let target = real.trim_start_matches("https://").to_owned();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let push = scope.spawn(|| {
            let folder = folder.display().to_string();
            let flags = server(cluster, &format!("https://127.0.0.1:{port}"));
            let line: Vec<&str> = ["model", "push", &folder, "--name", "restless"]
                .into_iter()
                .chain(flags.iter().map(String::as_str))
                .collect();
            let told = run(cluster, &line);
            // Ends the wait for connections.
            over.store(true, Ordering::SeqCst);
            drop(TcpStream::connect(("127.0.0.1", port)));
            told
        });
        let mut meanwhile = Some(meanwhile);
        for client in listener.incoming() {
            if over.load(Ordering::SeqCst) {
                break;
            }
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            let client = client.expect("a connection");
            let Ok(real) = TcpStream::connect(&target) else {
                continue;
            };
            let (mut up, mut down) = (
                (
                    client.try_clone().expect("cloned"),
                    real.try_clone().expect("cloned"),
                ),
                (real, client),
            );
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up.0, &mut up.1);
                let _ = up.1.shutdown(std::net::Shutdown::Write);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut down.0, &mut down.1);
                let _ = down.1.shutdown(std::net::Shutdown::Write);
            });
        }
        push.join().expect("pushed")
    })
}

#[test]
fn names_that_are_odd_and_allowed_reach_the_replica_as_they_are() {
    let cluster = Cluster::start();
    deploy_steady(&cluster);
    let folder = cluster.probe_model("odd", "1", &json!({}));
    let long = "x".repeat(255);
    for name in [
        "with spaces at the end ",
        "日本語/ünï",
        "quotes\"'`$(exit 1)",
        "-rf",
        ".hidden",
        "back\\slash",
        "%2e%2e",
        &long,
    ] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        fs::write(path, name).expect("file");
    }
    let shown = folder.display().to_string();
    let pushed = cluster.cli_json(&["model", "push", &shown, "--name", "odd"]);
    let model = format!("odd/{}", pushed["version"]);
    cluster.cli(&["deploy", "odd", "--model", &model, "--runtime", "probe"]);
    for endpoint in ["odd", STEADY] {
        let answer = cluster.query(endpoint, &json!({"inputs": [[2]]}));
        assert_eq!(answer.json()["predictions"], json!([2.0]), "{endpoint}");
    }
    cluster.finish();
}
