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

# Who may import whom: the list in ARCHITECTURE.md is the rule, and each arrow in it is used.
# No two files import each other.
wrong=$(
    {
        sed -n '/^## Who may import whom/,/^## ./{/^```/,/^```/s/ → / /p}' ARCHITECTURE.md | sed 's/^/rule /; s/,//g'
        find src -mindepth 1 -maxdepth 1 ! -name lib.rs ! -name main.rs | sed 's|^src/|module |; s/\.rs$//'
        find src -name '*.rs' | sort | xargs awk -f scripts/imports.awk | sed 's/^/import /'
    } | awk '
        $1 == "rule" {
            listed[$2]
            for (at = 3; at <= NF; at++) if ($at != "nothing") allowed[$2 " → " $at]
        }
        $1 == "module" && !($2 in listed) { print $2 " is missing in the list of ARCHITECTURE.md" }
        $1 == "import" && $2 !~ /^tests/ {
            split($2, from, "::")
            split($3, to, "::")
            arrow = from[1] " → " to[1]
            if (arrow in allowed) used[arrow]
            else if (from[1] != to[1]) print $2 " must not import " $3
            if ($4 == "code" && ($3 " " $2) in imports) print $2 " and " $3 " import each other"
            if ($4 == "code") imports[$2 " " $3]
        }
        END {
            for (arrow in allowed) if (!(arrow in used)) print "ARCHITECTURE.md allows " arrow ", which nothing needs"
        }' | sort -u
)
[ -z "$wrong" ] || complain "$wrong"

# A folder is a concern: more files in one want grouping.
found=$(find src tests benches examples fuzz/fuzz_targets scripts -name '*.rs' -o -name '*.sh' -o -name '*.awk' |
    sed 's|/[^/]*$||' | sort | uniq -c | awk '$1 > 12 { print $2 ": " $1 " files" }')
[ -z "$found" ] || complain "more than 12 files in a folder:
$found"

# What the guides name is there.
for path in $(grep -ohE '`(\.ci|\.github|benches|docs|examples|fuzz|monitoring|scripts|src|systemd|tests)/[^` ]*`' \
    ARCHITECTURE.md CONTRIBUTING.md 2>/dev/null | tr -d '`' | sort -u); do
    [ -e "$path" ] || complain "ARCHITECTURE.md or CONTRIBUTING.md names $path, which does not exist"
done

# Leases do not depend on the wall clock, which may jump: it is for captures, the metrics page,
# the doctor's question how far it is off, and the age of what outlived a reboot.
found=$(grep -rln 'SystemTime' src --include='*.rs' |
    grep -vE '^src/(daemon/(api/(capture|metrics/exporter)|state/offline_cache)|dataplane/tap|doctor/gather/member)\.rs$' || true)
[ -z "$found" ] || complain "the wall clock in:
$found"

# Nothing is left for later.
found=$(grep -rnE 'TODO|FIXME|XXX|unimplemented!|todo!\(' --include='*.rs' --include='*.sh' --include='*.md' . --exclude-dir=target | grep -v check-sources.sh || true)
[ -z "$found" ] || complain "left over:
$found"

# Links between the guides resolve.
./scripts/check-links.sh || status=1

exit $status
