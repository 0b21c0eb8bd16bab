//! Watch: changes as they happen, at the watcher's own pace.
//!
//! Nothing is kept for a watcher but where it stands. One that is slow reads on from the store's history, and one that is behind even that
//! hears OUT_OF_RANGE and begins again.

use super::object::{result_to_wire, to_wire};
use super::read::{kind_filter, namespace_filter};
use super::refusal::of_store;
use super::{Open, OperatorApi, Streamed};
use crate::auth::{Act, Principal, Target, authorize};
use crate::store::{Change, ChangeFeed, ChangeResult, Committed, KindName, ListQuery, ObjectKey, StoreError};
use firebreak_policy::model::{NamespaceName, Revision};
use firebreak_proto::v1;
use futures::stream;
use std::collections::VecDeque;
use tonic::Status;

struct Watch {
    filter: Filter,
    /// What there is, still to be listed.
    listing: Option<ListQuery>,
    feed: ChangeFeed,
    ready: VecDeque<v1::WatchEvent>,
    api: OperatorApi,
    _open: Open,
}

struct Filter {
    kind: Option<KindName>,
    namespace: Option<NamespaceName>,
}

impl Filter {
    fn takes(&self, key: &ObjectKey) -> bool {
        self.kind.as_ref().is_none_or(|kind| *kind == key.kind)
            && self.namespace.as_ref().is_none_or(|namespace| Some(namespace) == key.namespace.as_ref())
    }
}

impl OperatorApi {
    pub(super) async fn watch_objects(&self, principal: Principal, request: v1::WatchRequest) -> Result<Streamed<v1::WatchEvent>, Status> {
        authorize(&principal, Act::Watch, Target::Everything)?;
        let v1::WatchRequest { kind, namespace, after_revision } = request;
        let filter = Filter { kind: kind_filter(&kind)?, namespace: namespace_filter(&namespace) };
        let open = self.open_stream()?;
        let present = self.store.revision();
        let (listing, after) = match after_revision {
            0 => (
                Some(ListQuery {
                    at: Some(present),
                    limit: 500,
                    kind: filter.kind.clone(),
                    namespace: filter.namespace.clone(),
                    after: None,
                }),
                present,
            ),
            after if after > present.0 => {
                return Err(of_store(&StoreError::Future { asked: Revision(after), actual: present }));
            }
            after => (None, Revision(after)),
        };
        let watch = Watch { filter, listing, feed: self.store.watch(after), ready: VecDeque::new(), api: self.clone(), _open: open };
        let events = stream::try_unfold(watch, |mut watch| async move { Ok(watch.next().await?.map(|event| (event, watch))) });
        Ok(self.until_stopped(events))
    }
}

impl Watch {
    async fn next(&mut self) -> Result<Option<v1::WatchEvent>, Status> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            match self.listing.take() {
                Some(query) => self.list(query).await?,
                None => {
                    let committed = self.feed.next().await.map_err(|error| of_store(&error))?;
                    self.take_in(&committed);
                }
            }
        }
    }

    async fn list(&mut self, mut query: ListQuery) -> Result<(), Status> {
        let page = self.api.store.list(query.clone()).await.map_err(|error| of_store(&error))?;
        self.ready.extend(page.items.iter().map(|object| v1::WatchEvent {
            change: result_to_wire(ChangeResult::Created).into(),
            object: Some(to_wire(object, Vec::new())),
            revision: object.revision.0,
        }));
        if let Some(after) = page.next {
            query.after = Some(after);
            self.listing = Some(query);
        }
        Ok(())
    }

    fn take_in(&mut self, committed: &Committed) {
        let events = committed.changes.iter().filter(|change| self.filter.takes(&change.object.key)).map(|Change { result, object }| {
            v1::WatchEvent {
                change: result_to_wire(*result).into(),
                object: Some(to_wire(object, Vec::new())),
                revision: committed.revision.0,
            }
        });
        self.ready.extend(events);
    }
}
