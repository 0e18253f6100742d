//! Flags about the datastore.

use super::put;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::{
    Invalid, boolean, endpoints, optional, required, store_directory,
};
use crate::subnet::store::etcd::{DEFAULT_ENDPOINTS, DEFAULT_PREFIX};

/// Which store, and how to reach it. The commands that open a store take these too.
pub(crate) const STORE: &[Flag] = &[
    Flag::new(
        Group::Datastore,
        "store",
        "Where leases are kept: etcd, or dir:PATH",
        |to, text| put(&mut to.store.directory, store_directory(text)),
    )
    .value("STORE")
    .default("etcd")
    .ours()
    .details("dir:PATH is a directory that all nodes share; it needs no etcd."),
    Flag::new(
        Group::Datastore,
        "etcd-endpoints",
        "URLs of the etcd members, separated by commas",
        |to, text| put(&mut to.store.etcd.endpoints, endpoints(text)),
    )
    .value("URLS")
    .default(DEFAULT_ENDPOINTS),
    Flag::new(
        Group::Datastore,
        "etcd-prefix",
        "Key prefix of the network",
        |to, text| {
            let prefix = required(text, "a key prefix such as /coreos.com/network");
            put(&mut to.store.etcd.prefix, prefix)
        },
    )
    .value("KEY")
    .default(DEFAULT_PREFIX)
    .details("The network config is at KEY/config, the leases are below KEY/subnets/."),
    Flag::new(
        Group::Datastore,
        "etcd-api",
        "API of etcd: auto, v3, v2",
        |to, text| {
            let api = text.trim_ascii().parse().map_err(Invalid::Value);
            put(&mut to.store.etcd_api, api)
        },
    )
    .value("API")
    .default("auto")
    .ours()
    .details(
        "The two APIs are separate stores in one server: flannel uses v3 since v0.18, and used v2 \
         before. auto takes the one that holds the network config, and v3 if both do.",
    ),
    Flag::new(
        Group::Datastore,
        "etcd-cafile",
        "CA certificates (PEM) to verify etcd with",
        |to, text| {
            put(
                &mut to.store.etcd.ca_file,
                Ok(optional(text).map(Into::into)),
            )
        },
    )
    .value("FILE")
    .alias(&["etcd-ca-file"])
    .details(
        "Enough for https:// if etcd asks for no client certificate. The server's certificate is \
         always verified.",
    ),
    Flag::new(
        Group::Datastore,
        "etcd-certfile",
        "Client certificate (PEM) to present to etcd",
        |to, text| {
            put(
                &mut to.store.etcd.cert_file,
                Ok(optional(text).map(Into::into)),
            )
        },
    )
    .value("FILE")
    .alias(&["etcd-cert-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-keyfile",
        "Private key (PEM) of the client certificate",
        |to, text| {
            put(
                &mut to.store.etcd.key_file,
                Ok(optional(text).map(Into::into)),
            )
        },
    )
    .value("FILE")
    .alias(&["etcd-key-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-username",
        "User name for etcd",
        |to, text| {
            put(
                &mut to.store.etcd.username,
                Ok(optional(text).map(Into::into)),
            )
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
                let password = (!text.is_empty()).then(|| text.into());
                put(&mut to.store.etcd.password, Ok(password))
            },
        )
        .value("PASSWORD")
        .details(
            "Set it in the environment: every user of the host can read a process's command line.",
        )
    },
    Flag::new(
        Group::Datastore,
        "insecure-etcd",
        "Allow sending the password over the network without TLS",
        |to, text| put(&mut to.store.etcd.insecure_password, boolean(text)),
    )
    .ours()
    .details("Without it, a password is refused for any http:// endpoint but this host itself."),
];

pub(crate) const START: &[Flag] = &[Flag::new(
    Group::Datastore,
    "fail-fast",
    "Exit with status 69 if the datastore does not answer at start",
    |to, text| put(&mut to.fail_fast, boolean(text)),
)
.ours()
.details(
    "Without it the daemon keeps trying, and serves from its offline cache if it has one (see \
     --state-dir).",
)];
