# Prints `FOLDER FROM TO FILE KIND` for each import in the given files of src/: where the paths
# of importer and imported part, FROM and TO are the two sides, modules of FOLDER (`crate`, or
# `crate::daemon`). KIND is `code` or `test`.

# The module of a file: src/daemon/probes/path.rs is daemon::probes::path.
function module_of(file) {
    sub(/^src\//, "", file)
    sub(/\.rs$/, "", file)
    sub(/\/mod$/, "", file)
    gsub(/\//, "::", file)
    return file ~ /^(lib|main)$/ ? "" : file
}

# One imported path, from the module `here`.
function report(path, here, kind,    from, to, parts, depth, at, folder, step, head) {
    depth = split(here, from, "::")
    if (path ~ /^crate::/) {
        sub(/^crate::/, "", path)
        depth = 0
    }
    while (path ~ /^super::/) {
        sub(/^super::/, "", path)
        depth--
    }
    if (depth < 0) return
    head = ""
    for (at = 1; at <= depth; at++) head = head from[at] "::"
    split(head path, to, "::")
    folder = "crate"
    for (at = 1; (at in from) && (at in to) && from[at] == to[at]; at++) folder = folder "::" from[at]
    if (!(at in from) || !(at in to)) return
    if (!((folder "::" to[at]) in modules)) return
    print folder, from[at], to[at], FILENAME_OF, kind
}

# Each name at the top level of a group `{a, b::{c, d}, e}`, after the path before it.
function group(text, before, here, kind,    at, c, depth, name) {
    name = ""
    for (at = 2; at <= length(text); at++) {
        c = substr(text, at, 1)
        if (depth == 0 && (c == "," || c == "}" || c == "{")) {
            sub(/^ */, "", name)
            if (name != "" && name !~ /^\{/) report(before name, here, kind)
            name = ""
            if (c == "}") return
        }
        if (c == "{") depth++
        else if (c == "}") depth--
        else if (depth == 0 && c != ",") name = name c
        if (c == "," && depth == 0) name = ""
    }
}

function scan(text, here, kind,    path) {
    while (match(text, /(^|[^A-Za-z0-9_:$])(crate|super)(::super)*::/)) {
        path = substr(text, RSTART, RLENGTH)
        sub(/^[^a-z]/, "", path)
        text = substr(text, RSTART + RLENGTH)
        if (text ~ /^\{/) group(text, path, here, kind)
        else if (match(text, /^[A-Za-z0-9_]+(::[A-Za-z0-9_]+)*/)) report(path substr(text, 1, RLENGTH), here, kind)
    }
}

function finish(    at, here, test) {
    here = module_of(FILENAME_OF)
    at = index(code, "mod tests {")
    if (at) {
        test = here == "" ? "tests" : here "::tests"
        scan(substr(code, at), test, "test")
        code = substr(code, 1, at - 1)
    }
    scan(code, here, "code")
    code = ""
}

BEGIN {
    for (at = 1; at < ARGC; at++) {
        path = "crate"
        count = split(module_of(ARGV[at]), step, "::")
        for (part = 1; part <= count; part++) {
            path = path "::" step[part]
            modules[path]
        }
    }
}
FNR == 1 && FILENAME_OF != "" { finish() }
FNR == 1 { FILENAME_OF = FILENAME }
{
    sub(/^[ \t]*\/\/.*/, "")
    sub(/[ \t]\/\/ .*/, "")
    gsub(/[ \t]+/, " ")
    code = code $0 " "
}
END { finish() }
