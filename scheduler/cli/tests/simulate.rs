//! `stokehold simulate --stdio` as the program it is: an outside plant talks to it over pipes.

use std::io::{BufRead, BufReader, Read as _, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::{Value, json};

const POLICY: &str = r#"{"policy":{"min_replicas":1,"max_replicas":50,"scale_to_zero":false,
"provisioned_concurrency":0,"latency_objective_ms":null,"startup_s":10,
"initial_target_concurrency":null,"max_target_concurrency":1000}}"#;

struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_stokehold"))
            .args(["simulate", "--stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            input,
            output,
        }
    }

    fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open");
        writeln!(input, "{}", line.replace('\n', "")).expect("written");
    }

    /// Waits for one line: the answer comes before the next question is asked.
    fn ask(&mut self, line: &str) -> Value {
        self.tell(line);
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("read");
        serde_json::from_str(&answer).expect("a line of JSON")
    }

    fn end(mut self) -> Output {
        drop(self.input.take());
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).expect("read");
        let mut output = self.child.wait_with_output().expect("ended");
        output.stdout = rest;
        output
    }
}

/// Replicas that take 100 ms for each request, however many there are at once, up to the target.
struct Plant {
    ready: u32,
    /// Seconds at which replicas become ready.
    starting: Vec<u32>,
    target: u32,
}

impl Plant {
    fn second(&mut self, t: u32, load: f64) -> Value {
        let there = self.starting.len();
        self.starting.retain(|at| *at > t);
        self.ready += (there - self.starting.len()) as u32;
        let active = load.min(f64::from(self.ready * self.target));
        json!({
            "t": t, "active": active, "queued": load - active, "arrivals": load * 10.0,
            "completions": active * 10.0, "rejected": 0, "p50_ms": 100.0, "p95_ms": 110.0,
            "replicas_ready": self.ready, "replicas_starting": self.starting.len(),
            "resources": {"cpu": 0.3, "gpu_sm": null, "gpu_tensor": null, "gpu_membw": null,
                "memory": 0.4, "io_wait": 0.01, "pressure": 0.0},
        })
    }

    fn follow(&mut self, t: u32, answer: &Value) {
        let number = |field: &str| {
            let number = answer[field]
                .as_u64()
                .unwrap_or_else(|| panic!("{field} in {answer}"));
            u32::try_from(number).expect("small")
        };
        self.target = number("target_concurrency");
        let desired = number("desired_replicas");
        while self.ready + (self.starting.len() as u32) < desired {
            self.starting.push(t + 10);
        }
        while self.ready + self.starting.len() as u32 > desired {
            if self.starting.pop().is_none() {
                self.ready -= 1;
            }
        }
    }
}

#[test]
fn an_outside_plant_is_answered_second_by_second_until_its_input_ends() {
    let mut program = Program::start();
    assert_eq!(program.ask(POLICY), json!({"ready": true}));
    let mut plant = Plant {
        ready: 1,
        starting: Vec::new(),
        target: 1,
    };
    let mut carried = 0;
    for t in 0..600 {
        let load = if t < 60 { 2.0 } else { 40.0 };
        let answer = program.ask(&plant.second(t, load).to_string());
        assert!(answer["why"]["horizontal"].is_string(), "{answer}");
        assert!(answer["why"]["vertical"].is_string(), "{answer}");
        plant.follow(t, &answer);
        carried = plant.ready * plant.target;
    }
    assert!(carried >= 40, "the load is carried in the end: {carried}");
    let output = program.end();
    assert!(output.status.success() && output.stdout.is_empty());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_line_that_is_no_json_ends_the_program_with_2_and_the_lines_number() {
    let mut program = Program::start();
    program.ask(POLICY);
    program.tell("t=1");
    let output = program.end();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.starts_with("error: line 2: not a line of JSON"),
        "{told}"
    );
    assert!(output.stdout.is_empty());
}
