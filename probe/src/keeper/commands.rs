//! What the socket's calls ask of the keeper, and how they reach it.

use berth_core::facts::{NvmlStatus, Round};
use tokio::sync::{mpsc, oneshot};

use super::Keeper;
use crate::inforom;
use crate::processes::OnGpu;
use crate::session::{Inventory, Readings, Session};

/// An answer, with the state it was given in.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// NVML's state.
    pub status: NvmlStatus,
    /// Present when the state is ready.
    pub found: Option<T>,
    /// Calls that are left behind and have not come back.
    pub stuck_calls: u32,
}

/// Whether the driver can be unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `false`: a stuck call still holds it.
    pub released: bool,
    /// For people.
    pub message: String,
}

/// One of them, with where the answer goes.
pub(super) enum Command {
    Inventory(oneshot::Sender<Answer<Inventory>>),
    Sample(oneshot::Sender<Answer<Readings>>),
    Checks(bool, oneshot::Sender<Answer<Round>>),
    Processes(oneshot::Sender<Answer<Vec<OnGpu>>>),
    Release(oneshot::Sender<Release>),
    Resume(oneshot::Sender<NvmlStatus>),
}

/// How the socket's calls reach the keeper.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Command>);

/// Callers that wait for the keeper. There is one agent, which asks one thing at a time.
const QUEUE: usize = 8;

/// The keeper's task is gone: the process is ending.
#[derive(Debug, thiserror::Error)]
#[error("the probe is ending")]
pub struct Ending;

/// A handle, and where what it asks comes out.
pub(super) fn channel() -> (Handle, mpsc::Receiver<Command>) {
    let (send, commands) = mpsc::channel(QUEUE);
    (Handle(send), commands)
}

impl Handle {
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Ending> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)
    }

    /// Driver, GPUs, MIG.
    pub async fn inventory(&self) -> Result<Answer<Inventory>, Ending> {
        self.ask(Command::Inventory).await
    }

    /// One reading of every GPU.
    pub async fn sample(&self) -> Result<Answer<Readings>, Ending> {
        self.ask(Command::Sample).await
    }

    /// What the health checks read; `slow`: begin what takes long, too.
    pub async fn checks(&self, slow: bool) -> Result<Answer<Round>, Ending> {
        self.ask(|reply| Command::Checks(slow, reply)).await
    }

    /// Processes on the GPUs.
    pub async fn processes(&self) -> Result<Answer<Vec<OnGpu>>, Ending> {
        self.ask(Command::Processes).await
    }

    /// Lets go of the driver and stays away from it.
    pub async fn release(&self) -> Result<Release, Ending> {
        self.ask(Command::Release).await
    }

    /// Opens the driver again.
    pub async fn resume(&self) -> Result<NvmlStatus, Ending> {
        self.ask(Command::Resume).await
    }
}

impl Keeper {
    pub(super) async fn answer(&mut self, command: Command) {
        match command {
            // Nobody waits for it any more; do not let a slow driver pile up work.
            Command::Inventory(reply) if reply.is_closed() => {}
            Command::Sample(reply) if reply.is_closed() => {}
            Command::Checks(_, reply) if reply.is_closed() => {}
            Command::Processes(reply) if reply.is_closed() => {}
            Command::Processes(reply) => {
                let found = self.read(|session, clock| session.processes(clock)).await;
                let _ = reply.send(self.with_state(found));
            }
            Command::Checks(slow, reply) => {
                let mut found = self.check(slow).await;
                // Each answer goes out once, and not to somebody who has gone.
                if let (Some(round), false) = (&mut found, reply.is_closed()) {
                    match &self.validation {
                        Some(validation) => validation.tell(round),
                        None if self.owes_validation => inforom::is_to_come(round),
                        None => {}
                    }
                }
                let _ = reply.send(self.with_state(found));
            }
            Command::Inventory(reply) => {
                self.compare_bound().await;
                let found = self.read(Session::inventory).await;
                let _ = reply.send(self.with_state(found));
            }
            Command::Sample(reply) => {
                let found = self.read(|session, clock| session.sample(clock)).await;
                let _ = reply.send(self.with_state(found));
            }
            Command::Release(reply) => {
                let release = self.release().await;
                let _ = reply.send(release);
            }
            Command::Resume(reply) => {
                if self.let_go {
                    self.resume().await;
                }
                let _ = reply.send(self.status.clone());
            }
        }
    }

    pub(super) fn with_state<T>(&self, found: Option<T>) -> Answer<T> {
        Answer {
            status: self.status.clone(),
            found,
            stuck_calls: u32::try_from(self.stuck.len() + self.holders.stuck()).unwrap_or(u32::MAX),
        }
    }
}
