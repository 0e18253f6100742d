//! The subnet file of an earlier life, and dockerd's options out of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::cli::docker_opts::{DockerOptsArgs, RenderError, render};
use uvxlan::daemon::state::subnet_env::{self, SubnetFile};

fuzz_target!(|text: &[u8]| {
    let previous = subnet_env::parse(text);
    for prefix in previous.network.iter().chain(&previous.subnet) {
        assert_eq!(*prefix, prefix.trunc());
    }
    for (name, value) in subnet_env::env_lines(text) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        assert!(!name.is_empty() && name.bytes().all(plain), "{name:?}");
        assert!(!value.contains('\n'), "{value:?}");
    }
    renders_options(text);
    if let (Some(network), Some(subnet)) = (previous.network, previous.subnet) {
        // No lease is a single address.
        if subnet.prefix_len() < 32 {
            is_remembered(&SubnetFile {
                network,
                subnet,
                mtu: 1450,
                ip_masq: text.len().is_multiple_of(2),
            });
        }
    }
});

/// Arguments as `uvxlan docker-opts` has them without options, but for the flags.
fn arguments(individual: bool, combined: bool, without_masquerade: bool) -> DockerOptsArgs {
    DockerOptsArgs {
        input: "/run/flannel/subnet.env".into(),
        output: "/run/docker_opts.env".into(),
        individual,
        combined,
        key: "DOCKER_OPTS".to_owned(),
        without_masquerade,
    }
}

fn renders_options(text: &[u8]) {
    for without_masquerade in [false, true] {
        let rendered = |individual, combined| {
            render(text, &arguments(individual, combined, without_masquerade))
        };
        let both = match rendered(false, false) {
            Ok(both) => both,
            Err(RenderError::IpMasq(_)) if !without_masquerade => continue,
            Err(error) => panic!("{error}"),
        };
        let individual = rendered(true, false).expect("as before");
        let combined = rendered(false, true).expect("as before");
        assert_eq!(both, format!("{individual}{combined}"));
        assert_eq!(rendered(true, true).as_ref(), Ok(&both));
        assert!(combined.starts_with("DOCKER_OPTS=\"") && combined.ends_with("\"\n"));
        assert_eq!(combined.matches('\n').count(), 1);
        for line in individual.lines() {
            assert!(line.starts_with("DOCKER_OPT_"), "{line:?}");
        }
    }
}

/// What this daemon writes it reads back, also through docker's options.
fn is_remembered(file: &SubnetFile) {
    let text = file.render();
    let read = subnet_env::parse(text.as_bytes());
    assert_eq!(read.network, Some(file.network));
    assert_eq!(read.subnet, Some(file.subnet));
    let options = render(text.as_bytes(), &arguments(false, false, false)).expect("plain values");
    assert_eq!(
        subnet_env::parse(options.as_bytes()).subnet,
        Some(file.subnet)
    );
}
