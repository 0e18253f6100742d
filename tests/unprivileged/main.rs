//! What needs no privileges, no namespaces and no datastore: `make check` runs these tests.

#[path = "../support/mod.rs"]
mod support;

mod cli;
mod events;
mod metrics;
mod mk_docker_opts;
mod models;
mod offload_differential;
mod packaging;
mod store_dir;
mod systemd_units;
