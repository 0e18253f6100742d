#!/bin/sh
# Tries a Debian package and `make install` as a stranger's machine sees them: in a fresh
# Debian root, made from the distribution's packages in a temporary folder and removed again.
# Needs root and debootstrap; downloads about 100 MB, once: the root is kept as an archive in
# the user's cache folder.
set -eu
cd "$(dirname "$0")/.."
program=${1:?usage: try-package.sh PROGRAM}
[ "$(id -u)" -eq 0 ] || { echo "a root file system can only be made by root" >&2; exit 1; }
command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq debootstrap; }
[ -x "$program" ] || { echo "there is no program $program: run 'make' first" >&2; exit 1; }

place=$(mktemp -d)
root=$place/root
clean() {
    ! mountpoint -q "$root/proc" || umount "$root/proc"
    rm -rf "$place"
}
trap clean EXIT INT TERM

. /etc/os-release
cache=${XDG_CACHE_HOME:-$HOME/.cache}/uvxlan
mkdir -p "$cache"
packages=systemd,make,man-db,iptables
made=$cache/$VERSION_CODENAME+$packages.tar
if [ -e "$made" ]; then
    mkdir "$root"
    tar -xf "$made" -C "$root"
else
    # The mirror that this machine uses.
    mirror=$(apt-get indextargets --format '$(CODENAME) $(SITE)' "Created-By: Packages" 2>/dev/null |
        sed -n "s/^$VERSION_CODENAME //p" | head -n 1)
    echo "making a fresh $VERSION_CODENAME"
    debootstrap --variant=minbase --include="$packages" "$VERSION_CODENAME" \
        "$root" ${mirror:+"$mirror"} >"$place/log" 2>&1 || { tail "$place/log" >&2; exit 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb
    tar -cf "$made.new" -C "$root" .
    mv "$made.new" "$made"
fi
mount -t proc proc "$root/proc"
make -s deb-root DESTDIR="$place/deb" PREFIX=/usr BIN="$program" >/dev/null
dpkg-deb -Znone --root-owner-group --build "$place/deb" "$root/tmp/uvxlan.deb" >/dev/null
mkdir -p "$root/src"
tar -c --exclude=./target --exclude=./fuzz/target --exclude=./.git . | tar -x -C "$root/src"
install -D "$program" "$root/src/uvxlan"

cat >"$root/tmp/try" <<'END'
# In a pipe, or behind `!`, a failure would not end this script.
set -eu
say() { echo "ok: $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
check() {
    hash -r
    uvxlan --version
    systemd-analyze verify uvxlan.service >/tmp/said 2>&1 || fail "verify: $(cat /tmp/said)"
    [ ! -s /tmp/said ] || fail "verify says: $(cat /tmp/said)"
    systemd-analyze security --offline=true --threshold=35 --no-pager uvxlan.service >/tmp/said ||
        fail "the exposure is above 3.5: $(tail -n 1 /tmp/said)"
    tail -n 1 /tmp/said
    [ "$(systemctl is-enabled uvxlan.service)" = disabled ] || fail "it is enabled"
    man -w uvxlan-run uvxlan-doctor >/dev/null
    [ -s "$1/share/bash-completion/completions/uvxlan" ] || fail "no completions"
    # No device file is here, and the doctor must say so rather than fall over.
    if uvxlan doctor >/tmp/said; then fail "the doctor is content"; fi
    grep -q 'modprobe tun' /tmp/said || fail "the doctor says: $(cat /tmp/said)"
}
dpkg -i /tmp/uvxlan.deb >/dev/null
check /usr
changed=$(dpkg --verify uvxlan) || fail "dpkg --verify: $changed"
[ -z "$changed" ] || fail "dpkg --verify says: $changed"
[ -s /usr/share/doc/uvxlan/copyright ] || fail "no copyright file"
say "the package installs, starts nothing, and its unit is taken"
echo FLANNEL_OPTIONS=mine >/etc/default/uvxlan
dpkg -r uvxlan >/dev/null 2>&1
grep -q mine /etc/default/uvxlan || fail "removing took the settings"
dpkg -P uvxlan >/dev/null 2>&1
left=$(find / -xdev -name '*uvxlan*' -not -path '/tmp/*' -not -path '/proc/*' -not -path '/src/*' -not -path '/var/cache/man/*')
[ -z "$left" ] || fail "left behind: $left"
say "removed it keeps its settings, purged it leaves nothing"
cd /src
make -s install BIN=uvxlan >/dev/null
check /usr/local
say "make install gives the same unit"
END
chroot "$root" sh /tmp/try
