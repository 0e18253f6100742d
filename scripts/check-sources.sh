#!/bin/sh
# Rules of the source tree that no compiler checks.
set -eu
cd "$(dirname "$0")/.."
status=0

complain() {
    echo "$1" >&2
    status=1
}

# unsafe lives at the kernel edge alone.
found=$(grep -rnE '\bunsafe\b *(\{|fn|impl|extern|trait)' src benches examples tests --include='*.rs' | grep -v '^src/sys/' || true)
[ -z "$found" ] || complain "unsafe outside src/sys:
$found"

# Who may import whom (ARCHITECTURE.md).
forbid() { # forbid FOLDER MODULES...
    folder=$1
    shift
    for module in "$@"; do
        found=$(grep -rnE "crate::$module\b" "src/$folder" --include='*.rs' || true)
        [ -z "$found" ] || complain "src/$folder must not import crate::$module:
$found"
    done
}
forbid wire sys offload route dataplane subnet host daemon cli testbed
forbid offload sys route dataplane subnet host daemon cli testbed
forbid route sys offload dataplane subnet host daemon cli testbed
forbid sys offload route dataplane subnet host daemon cli testbed
forbid dataplane subnet host daemon cli testbed
forbid subnet sys dataplane host daemon cli testbed
forbid host firewall dataplane subnet daemon cli testbed
forbid firewall wire sys offload route dataplane subnet host daemon cli testbed
forbid testbed doctor capture dataplane subnet daemon cli
forbid capture sys offload route subnet host daemon control doctor cli testbed
forbid control sys offload route dataplane subnet host daemon doctor cli testbed
forbid doctor cli testbed
forbid daemon doctor cli testbed

# Leases do not depend on the wall clock, which may jump: it is for captures, the metrics page,
# the doctor's question how far it is off, and the age of what outlived a reboot.
found=$(grep -rln 'SystemTime' src --include='*.rs' |
    grep -vE '^src/(daemon/(api/(capture|metrics/page)|state/offline_cache)|dataplane/tap|doctor/gather/member)\.rs$' || true)
[ -z "$found" ] || complain "the wall clock in:
$found"

# Nothing is left for later.
found=$(grep -rnE 'TODO|FIXME|XXX|unimplemented!|todo!\(' --include='*.rs' --include='*.sh' --include='*.md' . --exclude-dir=target | grep -v check-sources.sh || true)
[ -z "$found" ] || complain "left over:
$found"

exit $status
