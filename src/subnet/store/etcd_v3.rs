//! etcd API v3.
