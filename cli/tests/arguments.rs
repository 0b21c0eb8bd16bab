//! What the command line says to wrong arguments: which word is wrong, and what to write instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Output};

fn firebreak(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_firebreak"))
        .args(["--socket", "/nonexistent/firebreak.sock"])
        .args(arguments)
        .output()
        .expect("the binary runs")
}

#[test]
fn wrong_arguments_end_with_exit_code_2_and_name_the_word_that_is_wrong() {
    for (arguments, parts) in [
        (&["frobnicate"][..], &["frobnicate"][..]),
        (&["get"], &["<KIND>"]),
        (&["get", "polcies"], &["`polcies`", "segmentpolicies"]),
        (&["get", "workloads", "-o", "xml"], &["xml", "yaml"]),
        (&["get", "nodes", "-l", "tier in a"], &["tier in a", "parentheses"]),
        (&["get", "nodes", "--watch"], &["cannot be watched"]),
        (&["get", "sp/web", "web"], &["not both"]),
        (&["get", "sp", "-A", "-n", "shop"], &["--namespace"]),
        (&["describe", "workload"], &["NAME"]),
        (&["describe", "all", "x"], &["name its kind"]),
        (&["delete"], &["<KIND>"]),
        (&["delete", "sp"], &["name what to delete"]),
        (&["delete", "sp/"], &["name what to delete"]),
        (&["delete", "all", "x"], &["more than one kind"]),
        (&["delete", "sp", "x", "-f", "y.yaml"], &["cannot be used with"]),
        (&["delete", "sp", "x", "--forget"], &["--forget is for nodes"]),
        (&["delete", "node", "x", "--forget", "--dry-run"], &["no dry run"]),
        (&["explain", "--from", "web"], &["--to"]),
        (&["explain", "--from", "web", "--to", "db"], &["needs a port", "db:443/tcp"]),
        (&["explain", "--from", "web", "--to", "db:99999"], &["`99999`", "65535"]),
        (&["explain", "--from", "web", "--to", "db:53/upd"], &["`upd`"]),
        (&["flows", "--from", "10.0.0.0/33"], &["10.0.0.0/33"]),
        (&["flows", "--protocol", "tpc"], &["`tpc`", "tcp"]),
        (&["flows", "--port", "70000"], &["70000"]),
        (&["flows", "--direction", "in"], &["ingress"]),
        (&["apply"], &["--filename"]),
        (&["apply", "-f", "/nonexistent/policy.yaml"], &["/nonexistent/policy.yaml"]),
        (&["completion", "tcsh"], &["tcsh", "bash"]),
        (&["history", "--limit", "many"], &["many"]),
    ] {
        let output = firebreak(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{arguments:?} should say {part:?}, said: {stderr}");
        }
        assert!(output.stdout.is_empty(), "{arguments:?} printed to stdout");
    }
}

#[test]
fn a_controller_that_is_not_there_is_an_error_that_names_the_socket_and_the_remedy() {
    for arguments in [&["nodes"][..], &["get", "all"], &["explain", "--from", "a", "--to", "b:1"], &["flows"], &["history"]] {
        let output = firebreak(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in ["/nonexistent/firebreak.sock", "is firebreak-controller running", "FIREBREAK_SOCKET"] {
            assert!(stderr.contains(part), "{arguments:?}: {stderr}");
        }
    }
}

#[test]
fn an_existing_file_is_never_overwritten_by_a_backup() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("controller.db");
    std::fs::write(&file, "precious").unwrap();
    let output = firebreak(&["backup", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nothing is overwritten"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn completion_scripts_are_made_for_every_shell_without_a_controller() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = firebreak(&["completion", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("firebreak"), "{shell}");
    }
}
