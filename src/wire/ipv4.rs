//! IPv4 header: view and incremental checksum updates.
