#!/bin/sh
# Prints the control file of the Debian package.
set -eu
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
cat <<END
Package: uvxlan
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: the uvxlan developers <uvxlan@localhost>
Depends: libc6
Recommends: iptables | nftables
Suggests: docker.io, etcd-server
Section: net
Priority: optional
Description: flannel-compatible VXLAN in userspace
 A drop-in for flannel's vxlan backend that needs no vxlan in the kernel. It
 leases subnets in etcd as flannel does and carries containers' packets through
 a TUN device and a UDP socket.
END
