//! The rules on a host: as flannel's, mended, cleaned up after flannel and ourselves, whole or
//! not at all, and doing what they are for.

#[path = "support/nodes.rs"]
mod nodes;

#[path = "firewall/bench.rs"]
mod bench;
#[path = "firewall/effects.rs"]
mod effects;
#[path = "firewall/faults.rs"]
mod faults;
#[path = "firewall/leftovers.rs"]
mod leftovers;
#[path = "firewall/tools.rs"]
mod tools;
