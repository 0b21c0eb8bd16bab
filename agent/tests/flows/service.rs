//! A FlowService in the process that keeps what it gets.

use super::traffic::Kind;
use firebreak_proto::v1;
use firebreak_proto::v1::flow_service_server::FlowService;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Everything that arrived, by sequence.
#[derive(Clone, Default)]
pub struct Seen {
    pub records: BTreeMap<u64, v1::FlowRecord>,
    opened: usize,
    closed: usize,
}

impl Seen {
    fn add(&mut self, record: v1::FlowRecord) {
        if let Some(v1::flow_record::Record::Flow(flow)) = &record.record
            && !self.records.contains_key(&record.sequence)
        {
            match flow.phase() {
                v1::FlowPhase::Opened => self.opened += 1,
                v1::FlowPhase::Closed => self.closed += 1,
                v1::FlowPhase::Updated | v1::FlowPhase::Unspecified => {}
            }
        }
        self.records.insert(record.sequence, record);
    }

    pub fn events(&self) -> impl Iterator<Item = &v1::FlowEvent> {
        self.records.values().filter_map(|record| match record.record.as_ref().unwrap() {
            v1::flow_record::Record::Flow(flow) => Some(flow),
            v1::flow_record::Record::Lost(_) | v1::flow_record::Record::Cut(_) => None,
        })
    }

    /// The records of one flow, in order; `None` when there are none.
    pub fn flow(&self, kind: &Kind) -> Option<Vec<v1::FlowEvent>> {
        let address: Vec<u8> = match kind.destination() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let is_it = |event: &&v1::FlowEvent| {
            event.direction() == kind.direction && event.destination == address && event.transport == Some(kind.transport())
        };
        let events: Vec<_> = self.events().filter(is_it).cloned().collect();
        (!events.is_empty()).then_some(events)
    }

    pub fn phases(&self, phase: v1::FlowPhase) -> usize {
        match phase {
            v1::FlowPhase::Opened => self.opened,
            v1::FlowPhase::Closed => self.closed,
            v1::FlowPhase::Updated | v1::FlowPhase::Unspecified => panic!("not counted"),
        }
    }

    pub fn closed_packets(&self) -> u64 {
        self.events().filter(|event| event.phase() == v1::FlowPhase::Closed).map(|event| event.packets).sum()
    }

    /// Packets by reason.
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut lost = BTreeMap::new();
        for record in self.records.values() {
            if let Some(v1::flow_record::Record::Lost(event)) = &record.record {
                *lost.entry(event.reason.clone()).or_default() += event.packets;
            }
        }
        lost
    }

    pub fn sequence_range(&self) -> (u64, u64) {
        (*self.records.keys().next().unwrap(), *self.records.keys().next_back().unwrap())
    }

    pub fn sequences_are_whole(&self) -> bool {
        self.records.keys().copied().eq(1..=u64::try_from(self.records.len()).unwrap())
    }
}

#[derive(Clone, Default)]
pub struct Service(pub Arc<Mutex<Seen>>);

#[tonic::async_trait]
impl FlowService for Service {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<v1::FlowAck, Status>> + Send>>;

    async fn report(&self, request: Request<Streaming<v1::FlowMessage>>) -> Result<Response<Self::ReportStream>, Status> {
        let (acks, receiver) = tokio::sync::mpsc::channel(8);
        let (mut stream, seen) = (request.into_inner(), self.0.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                let Some(v1::flow_message::Message::Batch(batch)) = message.message else { continue };
                let sequence = batch.records.last().unwrap().sequence;
                {
                    let mut seen = seen.lock().unwrap();
                    batch.records.into_iter().for_each(|record| seen.add(record));
                }
                if acks.send(Ok(v1::FlowAck { sequence })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
