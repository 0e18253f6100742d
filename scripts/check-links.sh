#!/bin/sh
# Reports relative links in *.md to files or headings that do not exist.
set -eu
cd "$(dirname "$0")/.."

# The anchors of a page's headings, as GitHub derives them.
anchors() {
    sed -n 's/^##* //p' "$1" | tr 'A-Z ' 'a-z-' | sed 's/[^a-z0-9_-]//g'
}

status=0
for page in $(find . -name target -prune -o -name '*.md' -print); do
    for link in $(grep -o ']([^)]*)' "$page" | sed 's/^](//; s/)$//'); do
        case $link in *:*) continue ;; esac
        file=${link%%#*}
        target=${file:+$(dirname "$page")/}${file:-$page}
        [ -e "$target" ] || { echo "$page: no file $link" >&2; status=1; continue; }
        case $link in
            *'#'*) anchors "$target" | grep -qxF -e "${link#*#}" || { echo "$page: no heading $link" >&2; status=1; } ;;
        esac
    done
done
exit $status
