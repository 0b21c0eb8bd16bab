//! What goes down to agents, part of it encoded already, and how it gets onto the wire: byte for byte a `ControllerMessage`.
//!
//! The generated server takes messages and encodes each for each stream. A change of a group goes to thousands of streams; here it comes as
//! bytes that all of them share, and costs each a copy into its connection's buffer.

use super::{Agents, Down, Incoming};
use bytes::{Buf as _, BufMut as _, Bytes};
use firebreak_proto::v1::agent_service_server::SERVICE_NAME;
use firebreak_proto::{MAX_MESSAGE_BYTES, v1};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use std::convert::Infallible;
use std::task::{Context, Poll};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status};

/// The field `updates` of `Update`.
const UPDATES: u32 = 1;

/// The field `update` of `ControllerMessage`.
const UPDATE: u32 = 2;

/// What a stream's buffers begin with, and grow by: most messages are an ack or a change of one member. (tonic's own 8 KiB in each direction
/// would be 80 MB for 5,000 agents.)
const BUFFER_BYTES: usize = 1024;

/// So much is encoded before it is handed to the connection.
const YIELD_BYTES: usize = 32 * 1024;

/// One message to an agent.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    /// Encoded when it is sent.
    Message(Down),
    /// An `Update`: each piece is one item of its field `updates`, with its tag and length, and may be on its way to others too.
    Update(Vec<Bytes>),
}

/// One item of `updates`, as it stands in the encoded `Update`.
pub(crate) fn piece(update: &v1::ObjectUpdate) -> Bytes {
    let length = update.encoded_len();
    let mut piece = Vec::with_capacity(key_len(UPDATES) + encoded_len_varint(wide(length)) + length);
    encode_key(UPDATES, WireType::LengthDelimited, &mut piece);
    encode_varint(wide(length), &mut piece);
    // Only a buffer without room is an error, and a vector has room.
    if update.encode(&mut piece).is_err() {
        piece.clear();
    }
    Bytes::from(piece)
}

fn wide(length: usize) -> u64 {
    // A length in memory is never more than 64 bits.
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Encodes frames and decodes what agents send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = v1::AgentMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for FrameCodec {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match frame {
            Frame::Message(message) => {
                let whole = v1::ControllerMessage { message: Some(message) };
                whole.encode(into).map_err(|error| Status::internal(error.to_string()))
            }
            Frame::Update(pieces) => {
                let length = pieces.iter().map(Bytes::len).sum();
                into.reserve(length + 16);
                encode_key(UPDATE, WireType::LengthDelimited, into);
                encode_varint(wide(length), into);
                pieces.iter().for_each(|piece| into.put_slice(piece));
                Ok(())
            }
        }
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

impl Decoder for FrameCodec {
    type Item = v1::AgentMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<v1::AgentMessage>, Status> {
        let message = v1::AgentMessage::decode(&mut *from).map(Some).map_err(|error| Status::internal(error.to_string()));
        debug_assert!(message.is_err() || !from.has_remaining());
        message
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// `firebreak.v1.AgentService` with [`FrameCodec`]; otherwise what the generated server does.
#[derive(Clone, Debug)]
pub struct AgentServer(pub(super) Agents);

impl NamedService for AgentServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for AgentServer
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != "/firebreak.v1.AgentService/Sync" {
            return Box::pin(async { Ok(Status::unimplemented("").into_http()) });
        }
        let agents = self.0.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(FrameCodec).apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES));
            Ok(grpc.streaming(Sync(agents), request).await)
        })
    }
}

struct Sync(Agents);

impl StreamingService<v1::AgentMessage> for Sync {
    type Response = Frame;
    type ResponseStream = ReceiverStream<Result<Frame, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let agents = self.0.clone();
        Box::pin(async move { agents.sync(request).await })
    }
}
