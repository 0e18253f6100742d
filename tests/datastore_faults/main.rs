//! Faults of the datastore under a running overlay: two daemons and their containers in network
//! namespaces, a real etcd on a third host, and a steady ping between the containers that must
//! not lose a packet.
//!
//! These tests mostly wait, each in its own namespaces, so all of them run at the same time.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod contents;
mod lab;
mod offline_start;
mod proxy;
mod quorum;
mod sleep;
mod tls;
