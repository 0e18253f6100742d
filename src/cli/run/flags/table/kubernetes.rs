//! flannel's flags for Kubernetes.

use super::ignored;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::{Invalid, boolean};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Kubernetes,
        "kube-subnet-mgr",
        "Keep leases in the Kubernetes API: refused, not supported yet",
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
    .without_effect(),
    Flag::new(
        Group::Kubernetes,
        "kube-annotation-prefix",
        "Prefix of node annotations",
        ignored,
    )
    .value("PREFIX")
    .default("flannel.alpha.coreos.com")
    .without_effect(),
    Flag::new(
        Group::Kubernetes,
        "kubeconfig-file",
        "Path of the kubeconfig",
        ignored,
    )
    .value("FILE")
    .without_effect(),
    Flag::new(
        Group::Kubernetes,
        "net-config-path",
        "Network config file of Kubernetes mode",
        ignored,
    )
    .value("FILE")
    .default("/etc/kube-flannel/net-conf.json")
    .newer()
    .without_effect(),
    Flag::new(
        Group::Kubernetes,
        "set-node-network-unavailable",
        "Clear the node's NetworkUnavailable condition",
        |_, text| boolean(text).map(drop),
    )
    .default("true")
    .newer()
    .without_effect(),
];
