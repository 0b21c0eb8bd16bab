//! The checker can fail: it sees each sort of wrong decision when there is one.

use crate::field::Field;

#[test]
fn the_checker_sees_leaks_drops_and_resets() {
    let field = Field::start("li").unwrap();
    let forbidden = field.lines().iter().filter(|(_, _, _, allowed)| !allowed).count() * 2;
    let checker = field.check().unwrap();
    assert_eq!(checker.leaked().unwrap(), 0);
    let node = &field.site.node("routed").unwrap().namespace;
    let theirs = |rule: &str| {
        let text = format!(
            "add table inet theirs ; add chain inet theirs c {{ type filter hook forward priority 10 ; }} ; add rule inet theirs c {rule}"
        );
        let output = node.command("nft").arg(&text).output().unwrap();
        assert!(output.status.success(), "{text}: {output:?}");
    };
    let open = field.site.addresses("field/open-bridged").unwrap()[0];
    // A single lost datagram in three is a drop, and a reset is a refusal.
    theirs(&format!("ip saddr {open} udp dport 9001 numgen inc mod 3 0 drop"));
    checker.wait_for(300).unwrap();
    theirs(&format!("ip saddr {open} tcp dport 9001 reject with tcp reset"));
    checker.wait_for(300).unwrap();
    // Without policy everything that is forbidden arrives.
    field.site.delete(&crate::field::policies()).unwrap();
    checker.wait_for(600).unwrap();
    let outcome = checker.stop().unwrap();
    println!("{outcome}");
    assert!(
        outcome.dropped.iter().any(|it| it.contains("field/open-bridged -> field/srv-routed") && it.contains("udp")),
        "{:?}",
        outcome.dropped
    );
    assert!(outcome.refused.iter().any(|it| it.contains("open connection")), "an open connection is reset: {:?}", outcome.refused);
    assert!(outcome.refused.iter().any(|it| !it.contains("open connection")), "a new connection is refused: {:?}", outcome.refused);
    assert_eq!(outcome.leaked.len(), forbidden, "each forbidden pair is a leak: {:#?}", outcome.leaked);
}
