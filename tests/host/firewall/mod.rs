//! The firewall rules on a host: flannel's, installed completely or not at all, restored after
//! changes, with leftovers removed; and their effects.

mod bench;
mod effects;
mod faults;
mod leftovers;
mod tools;
