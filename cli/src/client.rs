//! The connection to the controller, and its errors as people want to read them.

use crate::output::BadInput;
use anyhow::Context as _;
use firebreak_proto::v1;
use std::path::{Path, PathBuf};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The server's own bound on answers (operator.proto), with room for the frame.
const LARGEST_ANSWER: usize = 5 * 1024 * 1024;

/// A client of the operator API.
pub(crate) type Operator = v1::operator_service_client::OperatorServiceClient<Channel>;

/// A controller, connected to at the first call, so that bad input is told before a missing controller is.
pub(crate) struct Client {
    socket: PathBuf,
    operator: Option<Operator>,
}

impl Client {
    /// A client of the controller behind this operator socket.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, operator: None }
    }

    /// The operator API, over a connection that is made once. Errors name the socket and say what to look at.
    pub(crate) async fn operator(&mut self) -> anyhow::Result<&mut Operator> {
        let operator = match self.operator.take() {
            Some(operator) => operator,
            None => connect(&self.socket).await?,
        };
        Ok(self.operator.insert(operator))
    }
}

async fn connect(socket: &Path) -> anyhow::Result<Operator> {
    let path = std::path::absolute(socket).with_context(|| format!("cannot make {} an absolute path", socket.display()))?;
    let path = path.to_str().ok_or_else(|| BadInput::new(format!("the socket path {} is not UTF-8", socket.display())))?;
    let channel = Endpoint::try_from(format!("unix://{path}"))
        .with_context(|| format!("{path} cannot be used as a socket path"))?
        .connect()
        .await
        .with_context(|| format!("cannot reach the controller at {path}: is firebreak-controller running, and may you open its socket? (--socket or FIREBREAK_SOCKET names another)"))?;
    Ok(Operator::new(channel).max_decoding_message_size(LARGEST_ANSWER))
}

/// Turns a refusal into the sentences that a person needs: what was asked, the controller's message, field by field.
pub(crate) fn refusal(what: impl std::fmt::Display, status: &Status) -> anyhow::Error {
    let mut text = format!("{what}: {}", status.message());
    if let Some(bad) = status.get_details_bad_request() {
        for violation in bad.field_violations {
            text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
        }
    }
    if status.code() == Code::Unavailable {
        text.push_str("\n  the controller went away; try again when it is back");
    }
    match status.code() {
        Code::InvalidArgument => BadInput::new(text).into(),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => anyhow::anyhow!(text),
    }
}
