//! Get, List, ListRevisions: what is in the store.

use super::OperatorApi;
use super::object::{self, time_to_wire, to_wire};
use super::page;
use super::refusal::{Violations, invalid, of_store};
use crate::auth::{Act, Principal, Target, authorize};
use crate::store::{KindName, ListQuery, ObjectKey, PAGE_BYTES, RevisionEntry, StoredObject};
use firebreak_manifest::Kind;
use firebreak_policy::model::{LabelSelector, NamespaceName, Revision};
use firebreak_proto::v1;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tonic::Status;

/// Objects looked at for one page: a selector that matches little gives short pages, not long requests.
const LOOKED_AT: usize = 10_000;

/// Where the next page of a list begins, and of which list.
#[derive(Debug, Serialize, Deserialize)]
struct ListToken {
    revision: u64,
    kind: String,
    namespace: String,
    selector: String,
    after: (String, String, String),
}

/// Where the next page of the audit trail begins.
#[derive(Debug, Serialize, Deserialize)]
struct RevisionToken {
    before: u64,
}

/// The kind that a filter asks for; empty is every kind.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
pub(super) fn kind_filter(kind: &str) -> Result<Option<KindName>, Status> {
    match Kind::from_name(kind) {
        Some(known) => Ok(Some(KindName::new(known.as_str()))),
        None if kind.is_empty() => Ok(None),
        None => Err(invalid("kind", object::unknown_kind(kind))),
    }
}

/// The namespace that a filter asks for; empty is every namespace.
pub(super) fn namespace_filter(namespace: &str) -> Option<NamespaceName> {
    (!namespace.is_empty()).then(|| NamespaceName::new(namespace))
}

/// The labels that a filter asks for; empty is whatever they are.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
pub(super) fn selector(text: &str) -> Result<LabelSelector, Status> {
    if text.len() > 4_096 {
        return Err(invalid("label_selector", "has over 4096 bytes"));
    }
    if text.is_empty() {
        return Ok(LabelSelector::everything());
    }
    text.parse().map_err(|error| invalid("label_selector", format!("{error}")))
}

impl OperatorApi {
    pub(super) async fn get_object(&self, principal: Principal, request: v1::GetRequest) -> Result<v1::Object, Status> {
        let wire = request.object.ok_or_else(|| invalid("object", "is not there; it names the object"))?;
        let mut violations = Violations::default();
        let Some(key) = object::read_ref("object", wire, &mut violations) else {
            violations.check()?;
            return Err(invalid("object", "cannot be read"));
        };
        authorize(&principal, Act::Read, Target::Objects(std::slice::from_ref(&key)))?;
        let found = self.store.get(key.clone()).await.map_err(|error| of_store(&error))?;
        let object = found.ok_or_else(|| Status::not_found(format!("not found: {key}")))?;
        let conditions = self.conditions(vec![key], Revision(0)).await.pop().unwrap_or_default();
        Ok(to_wire(&object, conditions))
    }

    pub(super) async fn list_objects(&self, principal: Principal, request: v1::ListRequest) -> Result<v1::ListResponse, Status> {
        authorize(&principal, Act::Read, Target::Everything)?;
        let v1::ListRequest { kind, namespace, label_selector, page_size, page_token } = request;
        let wanted = usize::try_from(page::size(page_size, 500)?).unwrap_or(usize::MAX);
        let selector = selector(&label_selector)?;
        let mut query = ListQuery { kind: kind_filter(&kind)?, namespace: namespace_filter(&namespace), ..ListQuery::default() };
        if let Some(token) = page::read_token::<ListToken>(&page_token)? {
            let ListToken { revision, kind: token_kind, namespace: token_namespace, selector: token_selector, after } = token;
            if (&token_kind, &token_namespace, &token_selector) != (&kind, &namespace, &label_selector) {
                return Err(page::foreign_token());
            }
            query.at = Some(Revision(revision));
            query.after = Some(ObjectKey::new(after.0, &after.1, after.2));
        }
        let Found { objects, next, revision } = self.find(query, &selector, wanted).await?;
        let keys = objects.iter().map(|object| object.key.clone()).collect();
        let conditions = self.conditions(keys, Revision(0)).await;
        let next_page_token = next.map_or_else(String::new, |after| {
            let after = (after.kind.as_str().to_owned(), after.namespace_text().to_owned(), after.name);
            page::write_token(&ListToken { revision: revision.0, kind, namespace, selector: label_selector, after })
        });
        let objects = objects.iter().zip(conditions).map(|(object, conditions)| to_wire(object, conditions)).collect();
        Ok(v1::ListResponse { objects, next_page_token, revision: revision.0 })
    }

    /// Objects that match, as many as fit on a page.
    async fn find(&self, mut query: ListQuery, selector: &LabelSelector, wanted: usize) -> Result<Found, Status> {
        let mut objects: Vec<Arc<StoredObject>> = Vec::new();
        let mut looked_at = 0;
        loop {
            query.limit = u32::try_from(wanted - objects.len()).unwrap_or(u32::MAX);
            let page = self.store.list(query.clone()).await.map_err(|error| of_store(&error))?;
            looked_at += page.items.len();
            objects.extend(page.items.into_iter().filter(|object| selector.matches(&object.labels)));
            let Some(after) = page.next else { return Ok(Found { objects, next: None, revision: page.revision }) };
            // A page of the store is at most PAGE_BYTES and one object, so that two together fit into a message.
            let bytes: usize = objects.iter().map(|object| object.json.len()).sum();
            if objects.len() >= wanted || bytes >= PAGE_BYTES || looked_at >= LOOKED_AT {
                return Ok(Found { objects, next: Some(after), revision: page.revision });
            }
            query.at = Some(page.revision);
            query.after = Some(after);
        }
    }

    pub(super) async fn list_trail(
        &self,
        principal: Principal,
        request: v1::ListRevisionsRequest,
    ) -> Result<v1::ListRevisionsResponse, Status> {
        authorize(&principal, Act::Read, Target::Everything)?;
        let v1::ListRevisionsRequest { page_size, page_token } = request;
        let limit = page::size(page_size, 100)?;
        let before = page::read_token::<RevisionToken>(&page_token)?.map(|token| Revision(token.before));
        let page = self.store.revisions(before, limit).await.map_err(|error| of_store(&error))?;
        let next_page_token = page.next.map_or_else(String::new, |before| page::write_token(&RevisionToken { before: before.0 }));
        let revisions = page.items.into_iter().map(entry_to_wire).collect();
        Ok(v1::ListRevisionsResponse { revisions, next_page_token })
    }
}

struct Found {
    objects: Vec<Arc<StoredObject>>,
    next: Option<ObjectKey>,
    revision: Revision,
}

fn entry_to_wire(entry: RevisionEntry) -> v1::RevisionEntry {
    let RevisionEntry { revision, time, principal, verb, reason, changes } = entry;
    v1::RevisionEntry {
        revision: revision.0,
        time: Some(time_to_wire(time)),
        principal,
        verb,
        reason,
        changes: changes.iter().map(|(key, result)| object::change_to_wire(key, *result, Vec::new())).collect(),
    }
}
