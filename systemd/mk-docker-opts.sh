#!/bin/sh
# Replaces flannel's mk-docker-opts.sh and takes the same options; `uvxlan docker-opts` does the
# work. The program is UVXLAN_BIN, or else uvxlan or flanneld beside this script, or else uvxlan
# on the PATH.

usage() {
    cat >&2 <<TXT
$0 [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Writes docker daemon options based on the subnet file.
  -f  subnet file, default /run/flannel/subnet.env
  -d  file to write, default /run/docker_opts.env
  -i  individual variables only
  -c  combined variable only
  -m  without --ip-masq
  -k  name of the combined variable, default DOCKER_OPTS
TXT
    exit 1
}

while getopts f:d:icmk:h flag "$@" 2>/dev/null; do
    case $flag in
        h | \?) usage ;;
    esac
done

here=$(dirname "$0")
for program in "${UVXLAN_BIN:-}" "$here/uvxlan" "$here/flanneld" "$(command -v uvxlan)"; do
    [ -n "$program" ] && [ -x "$program" ] || continue
    "$program" docker-opts "$@" || exit 1
    exit 0
done

echo "$0: no uvxlan program beside this script or on the PATH; set UVXLAN_BIN to it" >&2
exit 127
