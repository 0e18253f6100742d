#!/bin/sh
# Prints the control file of the Debian package with these files, of which PROGRAM is one.
set -eu
program=${1:?usage: control.sh PROGRAM ROOT}
root=${2:?usage: control.sh PROGRAM ROOT}
here=$(dirname "$0")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -1)
# Of the program, which may have been built elsewhere. ELF: byte 5 is 1 where the lesser byte
# of a number comes first, bytes 18 and 19 are the machine.
bytes() { od -An -tu1 -j"$1" -N"$2" "$program"; }
# shellcheck disable=SC2046 # two words
set -- $(bytes 18 2)
case "$(bytes 5 1 | tr -d ' ')" in
    1) machine=$(($1 + 256 * $2)) ;;
    *) machine=$((256 * $1 + $2)) ;;
esac
case $machine in
    62) architecture=amd64 ;;
    183) architecture=arm64 ;;
    243) architecture=riscv64 ;;
    40) architecture=armhf ;;
    21) architecture=ppc64el ;;
    22) architecture=s390x ;;
    *) echo "$program: no architecture of Debian for ELF machine $machine" >&2; exit 1 ;;
esac
size=$(du -ks --apparent-size --exclude=DEBIAN "$root" | cut -f1)
# The newest symbol version that the program asks for is the oldest libc that starts it; a
# static program asks for none.
libc=$(LC_ALL=C grep -ao 'GLIBC_2\.[0-9.]*[0-9]' "$program" | sort -uV | tail -1 | sed 's/GLIBC_//')
cat <<END
Package: uvxlan
Version: $version
Architecture: $architecture
Maintainer: the uvxlan developers <uvxlan@localhost>
Installed-Size: $size
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
