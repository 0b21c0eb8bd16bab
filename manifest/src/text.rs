//! From text to documents. The only file that knows the YAML reader.

use crate::tree::{Position, Tree, Value};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};

/// One document of a source.
pub(crate) struct Document {
    /// From 1; empty documents are counted, as people count `---` lines.
    pub(crate) number: usize,
    /// Its content, or what is wrong with it and where.
    pub(crate) content: Result<Tree, (Position, String)>,
}

/// The documents of a text, without the empty ones. Each is read on its own, so that a fault in one hides no other.
pub(crate) fn documents(text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    split(text)
        .into_iter()
        .zip(1..)
        .filter_map(|(Chunk { text, first_line }, number)| {
            let content = read(text, first_line);
            let empty = matches!(&content, Ok(Tree { value: Value::Null, .. }));
            (!empty).then_some(Document { number, content })
        })
        .collect()
}

struct Chunk<'t> {
    text: &'t str,
    /// Lines of the source before it.
    first_line: u64,
}

/// Cuts before each line that begins a document (YAML 1.2.2 section 9.1.2: `---` at a line's start ends even a block
/// scalar). What stands before the first one is a document of its own unless it is only blank lines, comments and directives.
fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut offset, mut line_number) = (0, 0);
    let mut only_prologue = true;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end_matches(['\n', '\r']);
        let begins = bare == "---" || bare.starts_with("--- ") || bare.starts_with("---\t");
        if begins && !only_prologue {
            chunks.push(Chunk { text: &text[start..offset], first_line: start_line });
            (start, start_line) = (offset, line_number);
        }
        let prologue = bare.trim_start().is_empty() || bare.trim_start().starts_with('#') || bare.starts_with('%');
        only_prologue = if begins { false } else { only_prologue && prologue };
        offset += line.len();
        line_number += 1;
    }
    chunks.push(Chunk { text: &text[start..], first_line: start_line });
    chunks
}

fn read(text: &str, first_line: u64) -> Result<Tree, (Position, String)> {
    match serde_saphyr::from_str_with_options::<Option<Tree>>(text, options()) {
        Ok(None) => Ok(Tree { value: Value::Null, position: Position::UNKNOWN }),
        Ok(Some(mut tree)) => {
            tree.shift(first_line);
            Ok(tree)
        }
        Err(error) => {
            let mut position = error.location().map_or(Position::UNKNOWN, Position::from);
            if position != Position::UNKNOWN {
                position.line += first_line;
            }
            Err((position, reason(&error)))
        }
    }
}

fn reason(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    if let serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } = error {
        return format!("the key {key:?} is there twice in one mapping; keep one");
    }
    if let serde_saphyr::Error::UnknownAnchor { .. } = error {
        return "the alias names an anchor that is not in this document".to_owned();
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    // The position is said in our own form.
    let reason = line.split(" at line ").next().unwrap_or(line);
    format!("cannot be read as YAML: {reason}")
}

/// No includes (the feature is off), `yes` and `on` are text, a key may stand once, only YAML's own tags, and bounds
/// against bombs. The size of the text is bounded by the caller.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 16_000_000,
            max_nodes: 8_000_000,
            max_depth: 64,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_documents: 2,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 200_000,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 10_000,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        with_snippet: false,
    }
}
