//! Refusals as gRPC statuses: the code that operator.proto promises, a message for people, and field by field for programs.

use crate::store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Details travel in an HTTP/2 header, and a client takes 16 KiB of headers (h2's default): what is over this many bytes is counted instead.
const DETAIL_BYTES: usize = 6_000;
/// Bytes of one text in a status.
const TEXT_BYTES: usize = 1_000;

/// Everything that is wrong with a request, in its order.
#[derive(Debug, Default)]
pub(super) struct Violations {
    found: Vec<FieldViolation>,
    bytes: usize,
    unsaid: usize,
}

impl Violations {
    /// Notes that `field` is wrong and why.
    pub(super) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        let (field, reason) = (shortened(field.into()), shortened(reason.into()));
        self.bytes += field.len() + reason.len();
        if self.bytes > DETAIL_BYTES && !self.found.is_empty() {
            self.unsaid += 1;
        } else {
            self.found.push(FieldViolation::new(field, reason));
        }
    }

    /// INVALID_ARGUMENT with a BadRequest detail, if anything is wrong.
    #[allow(clippy::result_large_err, reason = "handlers hand the status on")]
    pub(super) fn check(mut self) -> Result<(), Status> {
        let Some(first) = self.found.first() else { return Ok(()) };
        let total = self.found.len() + self.unsaid;
        let message = if total == 1 {
            format!("{}: {}", first.field, first.description)
        } else {
            format!("{total} faults, the first: {}: {}", first.field, first.description)
        };
        if self.unsaid > 0 {
            self.found.push(FieldViolation::new("request", format!("has {} further faults", self.unsaid)));
        }
        let details = ErrorDetails::with_bad_request(self.found);
        Err(Status::with_error_details(Code::InvalidArgument, shortened(message), details))
    }
}

/// INVALID_ARGUMENT about one field.
pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Status {
    let (field, reason) = (shortened(field.into()), shortened(reason.into()));
    let message = format!("{field}: {reason}");
    Status::with_error_details(Code::InvalidArgument, message, ErrorDetails::with_bad_request_violation(field, reason))
}

/// The status that a store's error becomes.
pub(super) fn of_store(error: &StoreError) -> Status {
    let message = shortened(error.to_string());
    match error {
        StoreError::RevisionMismatch { .. } => Status::aborted(message),
        StoreError::NotFound(_) | StoreError::UnknownNode(_) => Status::not_found(message),
        StoreError::Duplicate(_) => Status::invalid_argument(message),
        StoreError::Expired { .. } => Status::out_of_range(format!("{message}; begin again without a revision")),
        StoreError::Future { .. } => Status::out_of_range(message),
        StoreError::Closed => Status::unavailable("the controller is stopping"),
        StoreError::File { .. } | StoreError::Database { .. } | StoreError::Corrupt { .. } => {
            tracing::error!(error = %error, "the store failed");
            Status::internal(message)
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES {
        let end = (0..=TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn many_faults_fit_into_a_header_and_none_is_forgotten() {
        let mut violations = Violations::default();
        for number in 0..10_000 {
            violations.add(format!("objects[{number}].json"), "\u{fc}".repeat(700));
        }
        let status = violations.check().unwrap_err();
        assert!(status.message().starts_with("10000 faults, the first: objects[0].json: "), "{}", status.message());
        assert!(status.message().len() < 1_200 && status.details().len() < 9_000, "{}", status.details().len());
        let bad = status.get_details_bad_request().unwrap();
        let said = bad.field_violations.len() - 1;
        assert_eq!(bad.field_violations[said].description, format!("has {} further faults", 10_000 - said));
    }
}
