//! Flags about the datastore.

use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::{
    Invalid, boolean, endpoints, optional, required, store_directory,
};
use crate::subnet::store::etcd::{DEFAULT_ENDPOINTS, DEFAULT_PREFIX};

/// Which store, and how it is reached: the daemon and the commands that open a store take these.
pub(crate) const STORE: &[Flag] = &[
    Flag::new(
        Group::Datastore,
        "etcd-endpoints",
        "etcd servers, separated by commas",
        |to, text| {
            to.store.etcd.endpoints = endpoints(text)?;
            Ok(())
        },
    )
    .value("URLS")
    .default(DEFAULT_ENDPOINTS),
    Flag::new(
        Group::Datastore,
        "etcd-prefix",
        "Key prefix of the network",
        |to, text| {
            to.store.etcd.prefix = required(text, "a key prefix such as /coreos.com/network")?;
            Ok(())
        },
    )
    .value("KEY")
    .default(DEFAULT_PREFIX)
    .details("The network config is read from KEY/config, leases lie below KEY/subnets/."),
    Flag::new(
        Group::Datastore,
        "etcd-api",
        "API of etcd: auto, v3, v2",
        |to, text| {
            to.store.etcd_api = text.trim_ascii().parse().map_err(Invalid::Value)?;
            Ok(())
        },
    )
    .value("API")
    .default("auto")
    .ours()
    .details(
        "v3 and v2 are two stores in one server: flannel since v0.18 uses v3, up to v0.17 it used \
         v2. auto takes the one that holds the network config, and v3 where both do.",
    ),
    Flag::new(
        Group::Datastore,
        "etcd-cafile",
        "CA certificates (PEM) to check etcd with",
        |to, text| {
            to.store.etcd.ca_file = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("FILE")
    .alias(&["etcd-ca-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-certfile",
        "Client certificate (PEM) shown to etcd",
        |to, text| {
            to.store.etcd.cert_file = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("FILE")
    .alias(&["etcd-cert-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-keyfile",
        "Key (PEM) of the client certificate",
        |to, text| {
            to.store.etcd.key_file = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("FILE")
    .alias(&["etcd-key-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-username",
        "User name for etcd",
        |to, text| {
            to.store.etcd.username = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("NAME"),
    Flag {
        secret: true,
        ..Flag::new(
            Group::Datastore,
            "etcd-password",
            "Password for etcd",
            |to, text| {
                to.store.etcd.password = (!text.is_empty()).then(|| text.into());
                Ok(())
            },
        )
        .value("PASSWORD")
        .details("Better given by the environment: a command line can be read by every user.")
    },
    Flag::new(
        Group::Datastore,
        "insecure-etcd",
        "Send the password over a network without TLS",
        |to, text| {
            to.store.etcd.insecure_password = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details(
        "Without it a password for an http:// endpoint other than this host itself is refused.",
    ),
    Flag::new(
        Group::Datastore,
        "store",
        "Where leases lie: etcd, or dir:PATH",
        |to, text| {
            to.store.directory = store_directory(text)?;
            Ok(())
        },
    )
    .value("STORE")
    .default("etcd")
    .ours()
    .details("dir:PATH is a directory that all nodes share; it needs no etcd."),
];

pub(crate) const START: &[Flag] = &[Flag::new(
    Group::Datastore,
    "fail-fast",
    "End with status 69 when the datastore does not answer at start",
    |to, text| {
        to.fail_fast = boolean(text)?;
        Ok(())
    },
)
.ours()
.details("Without it the daemon keeps trying.")];
