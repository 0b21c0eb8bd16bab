//! Who an agent says it is, checked field by field.

use firebreak_policy::model::{Generation, NodeName};
use firebreak_policy::node_state::NodeState;
use firebreak_proto::{FEATURE_AUDIT, FEATURE_REJECT, FEATURE_TIERS, PROTOCOL_VERSION, Refusal, v1};
use tonic::Status;

/// A Hello that can be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) node: NodeName,
    pub(crate) instance: String,
    pub(crate) boot_id: String,
    pub(crate) epoch: String,
    pub(crate) generation: Generation,
    pub(crate) version: String,
    /// What it can beside the protocol's version.
    pub(crate) features: Vec<String>,
}

impl Caller {
    /// What of a state the agent would pass over, not knowing the fields that say it.
    pub(crate) fn lacks(&self, state: &NodeState) -> Option<&'static str> {
        type Needs = fn(&NodeState) -> bool;
        let features = [
            (FEATURE_TIERS, NodeState::needs_tiers as Needs, "policies of tiers"),
            (FEATURE_REJECT, NodeState::needs_reject, "rules with `answer: Reject`"),
            (FEATURE_AUDIT, NodeState::needs_audit, "policies in Audit mode"),
        ];
        // The state is only looked through for an agent that lacks something.
        let lacking = features.into_iter().find(|(feature, needs, _)| !self.features.iter().any(|it| it == feature) && needs(state));
        lacking.map(|(_, _, what)| what)
    }
}

/// Longest name of a node (RFC 1123 subdomain, as Kubernetes has it).
const LONGEST_NODE_NAME: usize = 253;

/// Longest instance and boot id; both are made by agents and kernels and are shorter.
const LONGEST_ID: usize = 64;

/// No agent comes near it; what is over it was made up.
const MOST_GENERATIONS: u64 = u64::MAX / 2;

/// Reads a Hello.
///
/// # Errors
/// INVALID_ARGUMENT names the field; FAILED_PRECONDITION names both ranges of protocol versions.
#[allow(clippy::result_large_err, reason = "handlers hand the status on")]
pub(crate) fn read(hello: v1::Hello) -> Result<Caller, Status> {
    let v1::Hello { node, instance_id, boot_id, protocol_min, protocol_max, features, epoch, generation, agent_version } = hello;
    let invalid = |refusal: Refusal| Status::invalid_argument(refusal.within("hello").to_string());
    if protocol_min == 0 || protocol_min > protocol_max {
        let range = format!("{protocol_min} to {protocol_max} is no range of protocol versions");
        return Err(invalid(Refusal::new("protocol_min", range)));
    }
    if !(protocol_min..=protocol_max).contains(&PROTOCOL_VERSION) {
        let side = if protocol_max < PROTOCOL_VERSION { "agent" } else { "controller" };
        return Err(Status::failed_precondition(format!(
            "no protocol version is shared: the agent of node {} speaks {protocol_min} to {protocol_max}, this controller speaks \
             {PROTOCOL_VERSION}; upgrade the {side}",
            shown(&node)
        )));
    }
    // Generations go on from here: there must be room.
    if generation > MOST_GENERATIONS {
        return Err(invalid(Refusal::new("generation", format!("{generation} is over {MOST_GENERATIONS}"))));
    }
    Ok(Caller {
        node: node_name(node).map_err(invalid)?,
        instance: id(instance_id, "instance_id").map_err(invalid)?,
        boot_id: id(boot_id, "boot_id").map_err(invalid)?,
        epoch,
        generation: Generation(generation),
        version: agent_version.chars().filter(|character| !character.is_control()).take(LONGEST_ID).collect(),
        features,
    })
}

/// A node's name: lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit.
///
/// # Errors
/// Says what a name is.
pub(crate) fn node_name(name: String) -> Result<NodeName, Refusal> {
    let inner = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    let good = !name.is_empty()
        && name.len() <= LONGEST_NODE_NAME
        && name.chars().all(|character| inner(character) || matches!(character, '-' | '.'))
        && name.starts_with(inner)
        && name.ends_with(inner);
    if good {
        return Ok(NodeName::from(name));
    }
    Err(Refusal::new("node", format!("{:?} is no node name: 1 to 253 of a-z, 0-9, - and ., a letter or digit at both ends", shown(&name))))
}

/// What an answer repeats of a name that may be anything.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// An id that a machine made.
///
/// # Errors
/// Says what an id is.
pub(crate) fn id(text: String, field: &str) -> Result<String, Refusal> {
    let good = (8..=LONGEST_ID).contains(&text.len()) && text.chars().all(|it| it.is_ascii_alphanumeric() || it == '-');
    if good { Ok(text) } else { Err(Refusal::new(field, "is not 8 to 64 letters, digits and -")) }
}
