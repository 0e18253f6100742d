//! What the datastore does to a running overlay: two daemons and their containers in network
//! namespaces, a real etcd on a third host, and a ping between the containers that never
//! stops and loses nothing.

#[path = "datastore_faults/auth.rs"]
mod auth;
#[path = "datastore_faults/contents.rs"]
mod contents;
#[path = "datastore_faults/lab.rs"]
mod lab;
#[path = "datastore_faults/memory.rs"]
mod memory;
#[path = "support/nodes.rs"]
mod nodes;
#[path = "datastore_faults/proxy.rs"]
mod proxy;
#[path = "datastore_faults/quorum.rs"]
mod quorum;
#[path = "datastore_faults/sleep.rs"]
mod sleep;
mod support;
#[path = "datastore_faults/tls.rs"]
mod tls;
