//! Preflight on a real kernel.

use crate::install::config;
use crate::namespace::Namespace;
use firebreak_agent::dataplane::{DataplaneConfig, Feature, Severity, absent, preflight};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::os::unix::fs::PermissionsExt;

#[test]
fn this_kernel_has_everything_and_probing_leaves_nothing_behind() {
    let node = Namespace::new();
    let findings = node.run(|| preflight(&config(), false));
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(node.ruleset(), "");
}

#[test]
fn each_feature_that_is_missing_is_named_with_its_remedy_and_nothing_else_is() {
    let node = Namespace::new();
    for feature in Feature::ALL {
        let findings = node.run(move || preflight(&DataplaneConfig { absent: [feature].into(), ..config() }, false));
        let told: Vec<_> = findings.iter().map(|finding| (finding.code, finding.severity)).collect();
        assert_eq!(told, [(feature.code(), feature.severity())], "{feature}");
        assert!(!findings[0].remedy.is_empty() && !findings[0].message.contains('\n'));
        assert_eq!(absent(&findings), [feature].into());
    }
    assert_eq!(node.ruleset(), "");
}

#[test]
fn where_one_probe_fails_the_others_are_tried_one_by_one() {
    let node = Namespace::new();
    // An nft that knows no labels of connections, as a build without them.
    let folder = tempfile::tempdir().unwrap();
    let nft = folder.path().join("nft");
    std::fs::write(
        &nft,
        "#!/bin/sh\ncat > $0.in\ngrep -q 'ct label' $0.in && { echo 'no labels' >&2; exit 1; }\nexec nft \"$@\" < $0.in\n",
    )
    .unwrap();
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).unwrap();
    let findings = node.run(move || preflight(&DataplaneConfig { nft: nft.into(), ..config() }, false));
    assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["NoConntrackLabels"]);
    assert!(findings[0].message.contains("no labels"), "{findings:?}");
}

#[test]
fn what_is_missing_is_one_line_with_its_remedy() {
    let node = Namespace::new();
    let findings = node.run(|| preflight(&DataplaneConfig { nft: "/nonexistent/nft".into(), ..config() }, false));
    assert_eq!(findings.iter().map(|finding| (finding.code, finding.severity)).collect::<Vec<_>>(), [("NoNft", Severity::Fatal)]);
    let findings = node.run(|| {
        let mut held = capabilities(None).unwrap();
        held.effective -= CapabilitySet::NET_ADMIN;
        set_capabilities(None, held).unwrap();
        preflight(&config(), false)
    });
    assert!(findings.iter().any(|finding| finding.code == "NoNetAdmin" && finding.remedy.contains("CAP_NET_ADMIN")), "{findings:?}");
    for finding in findings {
        assert!(!finding.to_string().contains('\n') && !finding.remedy.is_empty());
    }
}

#[test]
fn bridge_sysctls_are_of_the_namespace_and_are_put_right() {
    let node = Namespace::new();
    let off = node.run(|| {
        for name in ["iptables", "ip6tables"] {
            std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{name}"), "0").unwrap();
        }
        preflight(&DataplaneConfig { set_bridge_sysctls: false, ..config() }, true)
    });
    assert_eq!(off.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["BridgeNetfilterOff"; 2]);
    let set = node.run(|| preflight(&config(), true));
    assert_eq!(set.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["BridgeNetfilterPutRight"; 2]);
    assert!(node.run(|| preflight(&config(), true)).is_empty());
}
