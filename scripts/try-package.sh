#!/bin/sh
# Tries a Debian package and `make install` as a stranger's machine sees them: in a fresh
# Debian root, made from the distribution's packages in a temporary folder and removed again.
# Needs root and debootstrap; downloads about 100 MB.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" -eq 0 ] || { echo "skipped: a root file system can only be made by root"; exit 0; }
command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq debootstrap; }
[ -x target/release/uvxlan ] || { echo "run 'make' first" >&2; exit 1; }

place=$(mktemp -d)
root=$place/root
clean() {
    ! mountpoint -q "$root/proc" || umount "$root/proc"
    rm -rf "$place"
}
trap clean EXIT INT TERM

. /etc/os-release
echo "making a fresh $VERSION_CODENAME"
debootstrap --variant=minbase --include=systemd,make,man-db,iptables "$VERSION_CODENAME" "$root" \
    >"$place/log" 2>&1 || { tail "$place/log" >&2; exit 1; }
mount -t proc proc "$root/proc"
cp target/deb/uvxlan_*.deb "$root/tmp/uvxlan.deb"
mkdir -p "$root/src"
tar -c --exclude=./target --exclude=./fuzz/target --exclude=./.git . | tar -x -C "$root/src"
install -D target/release/uvxlan "$root/src/target/release/uvxlan"

cat >"$root/tmp/try" <<'END'
set -eu
say() { echo "ok: $*"; }
check() {
    hash -r
    uvxlan --version
    systemd-analyze verify uvxlan.service
    systemd-analyze security --offline=true --threshold=35 --no-pager uvxlan.service | tail -n 1
    [ "$(systemctl is-enabled uvxlan.service)" = disabled ]
    man -w uvxlan-run uvxlan-doctor >/dev/null
    [ -s "$1/share/bash-completion/completions/uvxlan" ]
    # No device file is here, and the doctor must say so rather than fall over.
    ! uvxlan doctor >/tmp/doctor
    grep -q 'modprobe tun' /tmp/doctor
}
dpkg -i /tmp/uvxlan.deb >/dev/null
check /usr
say "the package installs, starts nothing, and its unit is taken"
echo FLANNEL_OPTIONS=mine >/etc/default/uvxlan
dpkg -r uvxlan >/dev/null 2>&1
grep -q mine /etc/default/uvxlan
dpkg -P uvxlan >/dev/null 2>&1
left=$(find / -xdev -name '*uvxlan*' -not -path '/tmp/*' -not -path '/proc/*' -not -path '/src/*' -not -path '/var/cache/man/*')
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
say "removed it keeps its settings, purged it leaves nothing"
cd /src
make -s install BIN=target/release/uvxlan >/dev/null
check /usr/local
say "make install gives the same unit"
END
chroot "$root" sh /tmp/try
