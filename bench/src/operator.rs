//! The operator API, called without a process in between.

use anyhow::Context as _;
use firebreak_proto::v1;
use firebreak_proto::v1::operator_service_client::OperatorServiceClient;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// One connection to the controller.
pub(crate) struct Operator {
    runtime: Runtime,
    client: OperatorServiceClient<Channel>,
}

impl Operator {
    /// Connects to the operators' socket.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
        let channel = runtime.block_on(endpoint.connect()).context("cannot reach the controller")?;
        Ok(Self {
            runtime,
            client: OperatorServiceClient::new(channel).max_encoding_message_size(64 << 20).max_decoding_message_size(64 << 20),
        })
    }

    /// Applies the objects of a manifest file; gives when the call began and how long it took.
    ///
    /// # Errors
    /// What the controller said.
    pub(crate) fn apply(&mut self, file: &Path) -> anyhow::Result<(Instant, Duration)> {
        let located = firebreak_manifest::load_paths(&[file.to_owned()]).map_err(|errors| anyhow::anyhow!("{errors}"))?;
        let objects = located
            .iter()
            .map(|located| v1::Object {
                api_version: located.object.api_version().to_owned(),
                kind: located.object.kind().to_string(),
                namespace: located.object.namespace().unwrap_or_default().to_owned(),
                name: located.object.name().to_owned(),
                json: located.object.to_json().into(),
                ..v1::Object::default()
            })
            .collect();
        self.apply_objects(objects)
    }

    /// Applies many objects, in several calls.
    ///
    /// # Errors
    /// What the controller said.
    pub(crate) fn load(&mut self, objects: Vec<v1::Object>) -> anyhow::Result<()> {
        objects.chunks(2_000).try_for_each(|some| self.apply_objects(some.to_vec()).map(drop))
    }

    /// Applies objects; gives when the call began and how long it took.
    ///
    /// # Errors
    /// What the controller said.
    pub(crate) fn apply_objects(&mut self, objects: Vec<v1::Object>) -> anyhow::Result<(Instant, Duration)> {
        let request = v1::ApplyRequest { objects, reason: "bench".to_owned(), ..v1::ApplyRequest::default() };
        let begun = Instant::now();
        self.runtime.block_on(self.client.apply(request)).context("the change was not accepted")?;
        Ok((begun, begun.elapsed()))
    }
}
