//! LabelRule to the model.

use super::parts;
use crate::path::{At, Problems};
use crate::validate;
use crate::{LabelRule, LabelRuleSpec, LabelRuleSubject, LabelSelector};
use firebreak_policy::model::{self, Labels};
use firebreak_policy::reserved::{self, ImagePattern, RESERVED_PREFIX};

/// An image's name with registry, tag and digest is shorter.
const IMAGE_BYTES: usize = 512;

pub(super) fn rule(object: &LabelRule, problems: &mut Problems<'_>) -> reserved::LabelRule {
    let LabelRule { metadata, spec: LabelRuleSpec { to, labels } } = object;
    let LabelRuleSubject { namespaces, workloads, nodes, images } = to;
    let root = At::ROOT;
    let at = root.field("spec");
    let to_at = at.field("to");
    if *to == LabelRuleSubject::default() {
        problems.add(&to_at, "says nobody: give namespaces, workloads, nodes or images; `namespaces: {}` is every workload");
    }
    let mut selector = |selector: &Option<LabelSelector>, field: &'static str| {
        selector.as_ref().map_or_else(model::LabelSelector::everything, |it| parts::selector(it, &to_at.field(field), problems))
    };
    let (namespaces, workloads, nodes) = (selector(namespaces, "namespaces"), selector(workloads, "workloads"), selector(nodes, "nodes"));
    let images_at = to_at.field("images");
    if images.as_ref().is_some_and(Vec::is_empty) {
        problems.add(&images_at, "is empty; name at least one image, or leave the field out");
    }
    for (position, image) in images.iter().flatten().enumerate() {
        if let Some(reason) = not_an_image(image) {
            problems.add(&images_at.index(position), reason);
        }
    }
    let labels_at = at.field("labels");
    if labels.is_empty() {
        problems.add(&labels_at, "is empty; say at least one label");
    }
    for (key, value) in labels {
        super::note(validate::qualified_name(key), &labels_at.key(key), problems);
        super::note(validate::label_value(value), &labels_at.key(key), problems);
        if !key.starts_with(RESERVED_PREFIX) {
            problems.add(&labels_at.key(key), format!("is not reserved; a rule gives labels below {RESERVED_PREFIX} only"));
        }
    }
    reserved::LabelRule {
        name: metadata.name.clone(),
        namespaces,
        workloads,
        nodes,
        images: images.iter().flatten().cloned().map(ImagePattern).collect(),
        labels: Labels(labels.clone()),
    }
}

fn not_an_image(image: &str) -> Option<String> {
    let beginning = image.strip_suffix('*').unwrap_or(image);
    if beginning.is_empty() {
        return Some("names no image; every workload is said by `namespaces: {}`".to_owned());
    }
    if image.len() > IMAGE_BYTES {
        return Some(format!("has {} bytes; an image's name has at most {IMAGE_BYTES}", image.len()));
    }
    let good = |it: char| it.is_ascii_graphic() && it != '*';
    (!beginning.chars().all(good)).then(|| format!("{image:?} is no image: a name without spaces, with `*` at its end at most"))
}
