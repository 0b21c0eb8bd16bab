//! The watcher: a process that asks the engine and prints [`Event`]s. It ends with its parent, and when nobody reads it.

use super::event::{Container, Event, MAX_LINE_BYTES};
use super::inspect::{self, NetworkFacts};
use bollard::models::{ContainerInspectResponse, EventMessage, EventMessageTypeEnum, ImageInspect};
use bollard::query_parameters::{EventsOptionsBuilder, InspectContainerOptions, InspectNetworkOptions, ListContainersOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How long one answer of the engine may take.
const ANSWER_SECONDS: u64 = 30;
/// How long to wait before the engine is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How many images are remembered.
const IMAGES: usize = 1024;

/// Why the watcher ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Nobody reads any more, or an event is too long to be told.
    #[error("printing an event: {0}")]
    Output(#[from] std::io::Error),
    /// The process could not be tied to its parent.
    #[error("prctl(PR_SET_PDEATHSIG): {0}")]
    Tie(nix::Error),
}

/// Why the engine has to be asked from the start.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error(transparent)]
    Engine(#[from] bollard::errors::Error),
    #[error("the engine ended its events")]
    Ended,
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// Watches the engine behind `socket` and prints what it says on `out`. Returns only with an error: the engine may come and go.
pub async fn watch(socket: &Path, out: &mut (impl Write + Send)) -> Result<std::convert::Infallible, WatchError> {
    set_pdeathsig(Signal::SIGKILL).map_err(WatchError::Tie)?;
    loop {
        let error = match follow(socket, out).await {
            Ok(never) => match never {},
            Err(EngineError::Output(error)) => return Err(error.into()),
            Err(error @ (EngineError::Engine(_) | EngineError::Ended)) => error,
        };
        print(out, &Event::Trouble { reason: error.to_string() })?;
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(socket: &Path, out: &mut (impl Write + Send)) -> Result<std::convert::Infallible, EngineError> {
    let path = socket.to_string_lossy();
    let docker = Docker::connect_with_unix(&path, ANSWER_SECONDS, API_DEFAULT_VERSION)?.negotiate_version().await?;
    let mut engine = Engine { docker, images: HashMap::new(), networks: BTreeMap::new() };
    // Events first, then the list: what changes in between is told twice rather than never.
    let kinds = HashMap::from([("type", vec!["container", "network"])]);
    let mut events = Box::pin(engine.docker.clone().events(Some(EventsOptionsBuilder::new().filters(&kinds).build())));
    engine.full_sync(out).await?;
    loop {
        match events.next().await {
            None => return Err(EngineError::Ended),
            Some(event) => engine.tell(&event?, out).await?,
        }
    }
}

struct Engine {
    docker: Docker,
    images: HashMap<String, ImageInspect>,
    networks: BTreeMap<String, NetworkFacts>,
}

impl Engine {
    async fn full_sync(&mut self, out: &mut (impl Write + Send)) -> Result<(), EngineError> {
        print(out, &Event::FullSyncBegin)?;
        self.networks.clear();
        let running = self.docker.list_containers(Some(ListContainersOptionsBuilder::new().all(false).build())).await?;
        for id in running.into_iter().filter_map(|summary| summary.id) {
            if let Some(container) = self.inspect(&id).await? {
                print(out, &Event::Running { container: Box::new(container) })?;
            }
        }
        Ok(print(out, &Event::FullSyncEnd)?)
    }

    async fn tell(&mut self, event: &EventMessage, out: &mut (impl Write + Send)) -> Result<(), EngineError> {
        let Some(id) = subject(event) else { return Ok(()) };
        if event.typ == Some(EventMessageTypeEnum::NETWORK) {
            // What is known of it may be out of date; `id` is the container that came or went.
            self.networks.clear();
        }
        let event = match self.inspect(&id).await? {
            Some(container) => Event::Running { container: Box::new(container) },
            None => Event::Stopped { id },
        };
        Ok(print(out, &event)?)
    }

    /// A running container; `None` when it is not running or cannot be read.
    async fn inspect(&mut self, id: &str) -> Result<Option<Container>, EngineError> {
        let answer = match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            answer => answer?,
        };
        self.learn_networks(&answer).await?;
        let image = match &answer.image {
            Some(image) => self.image(image).await?,
            None => None,
        };
        match inspect::container(&answer, image.as_ref(), &self.networks) {
            Ok(container) => Ok(container),
            Err(error) => {
                // Its interface stays unknown, and is denied.
                eprintln!("container {id} cannot be read: {error}");
                Ok(None)
            }
        }
    }

    async fn learn_networks(&mut self, answer: &ContainerInspectResponse) -> Result<(), EngineError> {
        let settings = answer.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        let ids = settings.into_iter().flat_map(|networks| networks.values()).filter_map(|endpoint| endpoint.network_id.clone());
        for id in ids.filter(|id| !id.is_empty()) {
            if self.networks.contains_key(&id) {
                continue;
            }
            match self.docker.inspect_network(&id, None::<InspectNetworkOptions>).await {
                Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
                answer => match inspect::network(&answer?) {
                    Ok(facts) => drop(self.networks.insert(id, facts)),
                    Err(error) => eprintln!("network {id} cannot be read: {error}"),
                },
            }
        }
        Ok(())
    }

    /// An image by its id; `None` when it was removed under a running container.
    async fn image(&mut self, id: &str) -> Result<Option<ImageInspect>, EngineError> {
        if let Some(image) = self.images.get(id) {
            return Ok(Some(image.clone()));
        }
        match self.docker.inspect_image(id).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            answer => {
                let image = answer?;
                if self.images.len() >= IMAGES {
                    self.images.clear();
                }
                self.images.insert(id.to_owned(), image.clone());
                Ok(Some(image))
            }
        }
    }
}

/// The container that an event is about, if the event can change what we know of it.
fn subject(event: &EventMessage) -> Option<String> {
    let actor = event.actor.as_ref()?;
    let action = event.action.as_deref()?;
    // The stream is asked for events of these two kinds only.
    if event.typ? == EventMessageTypeEnum::NETWORK {
        let matters = matches!(action, "connect" | "disconnect");
        if matters { actor.attributes.as_ref()?.get("container").cloned() } else { None }
    } else {
        let matters = matches!(action, "start" | "die" | "destroy" | "rename" | "restart" | "update");
        if matters { actor.id.clone() } else { None }
    }
}

fn print(out: &mut impl Write, event: &Event) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES {
        let id = if let Event::Running { container } = event { container.id.as_str() } else { "" };
        eprintln!("container {id} cannot be told: {} bytes", line.len());
        return Ok(());
    }
    out.write_all(&line)?;
    out.flush()
}
