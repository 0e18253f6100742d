#!/bin/sh
# Prints the control file of the Debian package that holds PROGRAM.
set -eu
program=${1:?usage: control.sh PROGRAM}
here=$(dirname "$0")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -1)
# The newest symbol version that the program asks for is the oldest libc that starts it; a
# static program asks for none.
libc=$(LC_ALL=C grep -ao 'GLIBC_2\.[0-9.]*[0-9]' "$program" | sort -uV | tail -1 | sed 's/GLIBC_//')
cat <<END
Package: uvxlan
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: the uvxlan developers <uvxlan@localhost>
${libc:+Depends: libc6 (>= $libc), libgcc-s1
}Recommends: iptables | nftables
Suggests: docker.io, etcd-server
Section: net
Priority: optional
Description: flannel-compatible VXLAN in userspace
 A drop-in for flannel's vxlan backend that needs no vxlan in the kernel. It
 leases subnets in etcd as flannel does and carries containers' packets through
 a TUN device and a UDP socket.
END
