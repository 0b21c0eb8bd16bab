#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn resolve(args: &[&str], text: &str) -> anyhow::Result<Config> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    let cli = Cli::try_parse_from(["firebreak-agent", "--config", path].iter().chain(args)).unwrap();
    Config::resolve(cli.run)
}

#[test]
fn flags_go_before_the_file_and_the_file_before_what_is_built_in() {
    let config =
        resolve(&["--node", "flag", "--docker-socket", "none"], "node = 'file'\nnflog-group = 7\nnode-labels = { zone = 'a' }").unwrap();
    assert_eq!((config.node.as_str(), config.dataplane.nflog_group, config.docker), ("flag", 7, DockerSocket::None));
    assert_eq!(config.node_labels, BTreeMap::from([("zone".to_owned(), "a".to_owned())]));
    let patterns = |config: &Config| config.dataplane.interface_patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(patterns(&resolve(&["--node", "n"], "").unwrap()), ["veth*", "cali*"]);
    assert_eq!(patterns(&resolve(&["--node", "n", "--workload-interfaces", "c-*,tap0"], "").unwrap()), ["c-*", "tap0"]);
    assert_eq!(patterns(&resolve(&["--node", "n"], "workload-interfaces = ['w*']").unwrap()), ["w*"]);
    let config = resolve(&["--node", "n"], "").unwrap();
    assert_eq!(config.docker, DockerSocket::IfPresent(PathBuf::from("/run/docker.sock")));
    assert_eq!(config.controller.uri().to_string(), "http://127.0.0.1:7443/");
    assert!(config.dataplane.set_bridge_sysctls);
    assert!(!resolve(&["--node", "n", "--set-bridge-sysctls", "false"], "").unwrap().dataplane.set_bridge_sysctls);
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let table: &[(&[&str], &str, &str)] = &[
        (&["--node", ""], "", "--node"),
        (&["--node", "Node"], "", "--node"),
        (&["--node", "a..b"], "", "--node"),
        (&["--node=-a"], "", "--node"),
        (&["--node", "n", "--workload-interfaces", "*"], "", "interface pattern"),
        (&["--node", "n", "--workload-interfaces", ","], "", "--workload-interfaces is empty"),
        (&["--node", "n", "--controller", "controller:7443"], "", "--controller"),
        (&["--node", "n", "--controller", "https://c:7443"], "", "--controller"),
        (&["--node", "n", "--docker-socket", ""], "", "--docker-socket"),
        (&["--node", "n"], "nodes = 'x'", "unknown field"),
        (&["--node", "n"], "nflog-group = -1", "nflog-group"),
        (&["--node", "n"], "node = ", "reading"),
    ];
    for (args, text, expected) in table {
        let error = format!("{:#}", resolve(args, text).map(|_| ()).expect_err(expected));
        assert!(error.contains(expected), "{args:?} {text:?}: {error}");
    }
    for args in [["--nflog-group", "65536"], ["--node-labels", "novalue"], ["--log-format", "xml"], ["--no-such-flag", "x"]] {
        assert!(Cli::try_parse_from(["firebreak-agent"].iter().chain(&args)).is_err(), "{args:?}");
    }
}

#[test]
fn the_commands_are_there() {
    for (args, expected) in [
        (vec!["uninstall"], "Uninstall"),
        (vec!["version"], "Version"),
        (vec!["docker-watch", "--socket", "/s"], "DockerWatch"),
        (vec!["helper", "--nft", "/sbin/nft"], "Helper"),
        (vec!["preflight", "--node", "n"], "Preflight"),
        (vec!["run", "--node", "n"], "Run"),
    ] {
        let cli = Cli::try_parse_from(["firebreak-agent"].into_iter().chain(args)).unwrap();
        assert!(format!("{:?}", cli.command).contains(expected), "{:?}", cli.command);
    }
    assert!(Cli::try_parse_from(["firebreak-agent"]).unwrap().command.is_none());
}
