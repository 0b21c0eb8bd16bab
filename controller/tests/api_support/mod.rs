//! A whole controller in this process, over real sockets, and the objects that tests apply.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use clap::Parser;
use firebreak_controller::app::App;
use firebreak_controller::config::{Cli, RunOptions};
use firebreak_proto::v1;
use firebreak_proto::v1::operator_service_client::OperatorServiceClient;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

pub type Client = OperatorServiceClient<Channel>;

pub fn options(folder: &Path) -> RunOptions {
    let cli = Cli::try_parse_from([
        "firebreak-controller",
        "--database",
        folder.join("controller.db").to_str().unwrap(),
        "--socket",
        folder.join("controller.sock").to_str().unwrap(),
        "--agent-listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
    ]);
    cli.unwrap().run
}

pub async fn channel(socket: &Path) -> Channel {
    let path = socket.to_str().unwrap();
    Endpoint::try_from(format!("unix://{path}")).unwrap().connect().await.unwrap()
}

pub struct Server {
    pub folder: tempfile::TempDir,
    pub client: Client,
    pub channel: Channel,
    pub metrics: SocketAddr,
    pub agents: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(folder: tempfile::TempDir) -> Self {
        let options = options(folder.path());
        let socket = options.socket.clone();
        let app = App::open(options).await.unwrap();
        let (metrics, agents) = (app.metrics_address(), app.agent_address());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(app.run(async move {
            drop(stopped.await);
            "test"
        }));
        let channel = channel(&socket).await;
        let client = Client::new(channel.clone()).max_encoding_message_size(64 << 20).max_decoding_message_size(4 << 20);
        Self { folder, client, channel, metrics, agents, stop, task }
    }

    pub async fn stop(self) -> tempfile::TempDir {
        let Self { folder, client, channel, metrics: _, agents: _, stop, task } = self;
        drop((client, channel));
        stop.send(()).unwrap();
        task.await.unwrap().unwrap();
        folder
    }

    pub async fn apply(&self, objects: Vec<v1::Object>) -> v1::ApplyResponse {
        let request = v1::ApplyRequest { objects, ..v1::ApplyRequest::default() };
        self.client.clone().apply(request).await.unwrap().into_inner()
    }

    pub async fn delete(&self, objects: Vec<v1::ObjectRef>) -> v1::DeleteResponse {
        let request = v1::DeleteRequest { objects, ..v1::DeleteRequest::default() };
        self.client.clone().delete(request).await.unwrap().into_inner()
    }

    /// What an HTTP path answers: status line and body.
    pub async fn http(&self, path: &str) -> (String, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut connection = tokio::net::TcpStream::connect(self.metrics).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

/// The wire's object for an object's JSON.
pub fn object(value: &Value) -> v1::Object {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    v1::Object {
        api_version: text(&value["apiVersion"]),
        kind: text(&value["kind"]),
        namespace: text(&value["metadata"]["namespace"]),
        name: text(&value["metadata"]["name"]),
        json: value.to_string().into(),
        ..v1::Object::default()
    }
}

pub fn policy_json(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "firebreak.dev/v1alpha1",
        "kind": "SegmentPolicy",
        "metadata": {"namespace": namespace, "name": name, "labels": {"team": app}},
        "spec": {
            "appliesTo": {"matchLabels": {"app": app}},
            "ingress": [{"from": [{"addressGroup": "office"}], "ports": [{"protocol": "TCP", "port": 5432}]}],
        },
    })
}

pub fn policy(namespace: &str, name: &str, app: &str) -> v1::Object {
    object(&policy_json(namespace, name, app))
}

pub fn namespace(name: &str) -> v1::Object {
    object(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
}

pub fn group(name: &str, block: &str) -> v1::Object {
    object(&json!({
        "apiVersion": "firebreak.dev/v1alpha1",
        "kind": "AddressGroup",
        "metadata": {"name": name},
        "spec": {"blocks": [{"cidr": block}]},
    }))
}

pub fn reference(kind: &str, namespace: &str, name: &str) -> v1::ObjectRef {
    v1::ObjectRef { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}
