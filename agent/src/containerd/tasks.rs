//! Tasks: the processes of containers.

use std::collections::BTreeMap;
use std::time::Duration;

use containerd_client::services::v1::{
    CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, ListTasksRequest, StartRequest,
    WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status};
use nix::sys::signal::Signal;
use shared::ids::ReplicaId;
use shared::report::ReplicaExit;

use super::{CallError, Containerd, QUICK, SLOW, call, unless_gone};
use crate::replica::ContainerState;

impl Containerd {
    /// The state of every task in the namespace that answered.
    pub async fn list_tasks(&self) -> Result<BTreeMap<String, ContainerState>, CallError> {
        let request = self.request(ListTasksRequest::default());
        let answer = call("tasks.list", QUICK, self.tasks().list(request)).await?;
        Ok(answer
            .tasks
            .into_iter()
            .map(|process| (process.id.clone(), state_of(&process)))
            .collect())
    }

    /// The state of one task. A list leaves out tasks whose shim does not answer, so that only this
    /// can tell "gone" from "not answering".
    pub async fn task_state(&self, replica: &ReplicaId) -> Result<ContainerState, CallError> {
        let request = self.request(GetRequest {
            container_id: replica.to_string(),
            exec_id: String::new(),
        });
        match call("tasks.get", QUICK, self.tasks().get(request)).await {
            Ok(answer) => Ok(answer
                .process
                .as_ref()
                .map_or(ContainerState::Unknown, state_of)),
            Err(error) if error.is_not_found() => Ok(ContainerState::NoTask),
            Err(error) => Err(error),
        }
    }

    pub async fn create_task(
        &self,
        replica: &ReplicaId,
        rootfs: Vec<Mount>,
        log_uri: &str,
    ) -> Result<(), CallError> {
        let request = self.request(CreateTaskRequest {
            container_id: replica.to_string(),
            rootfs,
            stdout: log_uri.to_owned(),
            stderr: log_uri.to_owned(),
            ..CreateTaskRequest::default()
        });
        call("tasks.create", SLOW, self.tasks().create(request))
            .await
            .map(|_| ())
    }

    pub async fn start_task(&self, replica: &ReplicaId) -> Result<(), CallError> {
        let request = self.request(StartRequest {
            container_id: replica.to_string(),
            exec_id: String::new(),
        });
        call("tasks.start", SLOW, self.tasks().start(request))
            .await
            .map(|_| ())
    }

    /// Sends a signal to the first process, or (`all`) to every one; none being there is fine.
    pub async fn kill_task(
        &self,
        replica: &ReplicaId,
        signal: Signal,
        all: bool,
    ) -> Result<(), CallError> {
        let request = self.request(KillRequest {
            container_id: replica.to_string(),
            exec_id: String::new(),
            signal: signal as u32,
            all,
        });
        let answer = call("tasks.kill", SLOW, self.tasks().kill(request)).await;
        unless_gone(answer.map(|_| ()))
    }

    /// Waits until the task has ended; `false` if it has not within `limit`.
    pub async fn wait_task(&self, replica: &ReplicaId, limit: Duration) -> Result<bool, CallError> {
        let request = self.request(WaitRequest {
            container_id: replica.to_string(),
            exec_id: String::new(),
        });
        match call("tasks.wait", limit, self.tasks().wait(request)).await {
            Ok(_) => Ok(true),
            Err(CallError::TimedOut { .. }) => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Deletes a task that has ended, with its shim; whether there was one does not matter.
    pub async fn delete_task(&self, replica: &ReplicaId) -> Result<(), CallError> {
        let request = self.request(DeleteTaskRequest {
            container_id: replica.to_string(),
        });
        let answer = call("tasks.delete", SLOW, self.tasks().delete(request)).await;
        unless_gone(answer.map(|_| ()))
    }
}

fn state_of(process: &Process) -> ContainerState {
    match Status::try_from(process.status) {
        Ok(Status::Created) => ContainerState::Created,
        // Nobody pauses replicas; one that somebody paused still has its processes.
        Ok(Status::Running | Status::Paused | Status::Pausing) => ContainerState::Running,
        Ok(Status::Stopped) => ContainerState::Exited(ReplicaExit {
            code: i32::try_from(process.exit_status).unwrap_or(i32::MAX),
            out_of_memory: false,
        }),
        Ok(Status::Unknown) | Err(_) => ContainerState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_we_do_not_know_is_unknown_not_gone() {
        let process = |status, exit_status| Process {
            status,
            exit_status,
            ..Process::default()
        };
        assert_eq!(state_of(&process(2, 0)), ContainerState::Running);
        assert_eq!(state_of(&process(0, 0)), ContainerState::Unknown);
        assert_eq!(state_of(&process(77, 0)), ContainerState::Unknown);
        assert_eq!(
            state_of(&process(3, 137)),
            ContainerState::Exited(ReplicaExit {
                code: 137,
                out_of_memory: false
            })
        );
    }
}
