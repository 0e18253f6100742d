//! flannel's flags for Kubernetes.

use super::ignored;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::{Invalid, boolean};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Kubernetes,
        "kube-subnet-mgr",
        "Leases from Kubernetes: refused, not supported yet",
        |_, text| {
            if boolean(text)? {
                Err(Invalid::KubeSubnetManager)
            } else {
                Ok(())
            }
        },
    ),
    Flag::new(
        Group::Kubernetes,
        "kube-api-url",
        "URL of the Kubernetes API server",
        ignored,
    )
    .value("URL")
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "kube-annotation-prefix",
        "Prefix of node annotations",
        ignored,
    )
    .value("PREFIX")
    .default("flannel.alpha.coreos.com")
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "kubeconfig-file",
        "kubeconfig file",
        ignored,
    )
    .value("FILE")
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "net-config-path",
        "Network config file of Kubernetes mode",
        ignored,
    )
    .value("FILE")
    .default("/etc/kube-flannel/net-conf.json")
    .newest()
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "set-node-network-unavailable",
        "Clear the node's NetworkUnavailable condition",
        |_, text| boolean(text).map(drop),
    )
    .default("true")
    .newest()
    .not_yet(),
];
