//! ICMP and ICMPv6 messages that this program writes.
