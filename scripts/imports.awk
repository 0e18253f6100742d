# Prints `FROM TO KIND` for each import in the files given, which are those of src/: the module
# that imports, the module that it imports from, and `code` or `test`. A module's own children
# and parents are left out.

# src/daemon/probes/path.rs is daemon::probes::path, src/daemon/mod.rs is daemon.
function module_of(file) {
    sub(/^src\//, "", file)
    sub(/\.rs$/, "", file)
    sub(/\/mod$/, "", file)
    gsub(/\//, "::", file)
    return file ~ /^(lib|main)$/ ? "" : file
}

# One path, `crate::…` or `super::…`, as the module `here` names it.
function report(path, here, kind,    from, to, depth, at, found) {
    if (here == "") return
    depth = split(here, from, "::")
    if (sub(/^crate::/, "", path)) depth = 0
    while (sub(/^super::/, "", path)) depth--
    for (at = depth; at >= 1; at--) path = from[at] "::" path
    split(path, to, "::")
    for (at = 1; (at in from) && (at in to) && from[at] == to[at]; at++) found = found to[at] "::"
    if (!(at in from) || !(at in to) || !((found to[at]) in modules)) return
    found = found to[at]
    while ((++at in to) && ((found "::" to[at]) in modules)) found = found "::" to[at]
    print here, found, kind
}

# Each path of `{a, b::{c, d}}`, which follows `before`. What is in inner braces is left out:
# the path before them says enough.
function group(text, before, here, kind,    at, c, depth, name) {
    for (at = 2; at <= length(text); at++) {
        c = substr(text, at, 1)
        if (depth == 0 && c ~ /[{,}]/) {
            sub(/ as .*/, "", name)
            gsub(/ |::$/, "", name)
            if (name != "") report(before name, here, kind)
            name = ""
            if (c == "}") return
        }
        if (c == "{") depth++
        else if (c == "}") depth--
        else if (c != "," && depth == 0) name = name c
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

function finish(    here, at) {
    here = module_of(file)
    at = index(code, "mod tests {")
    if (at) {
        scan(substr(code, at), here == "" ? "tests" : here "::tests", "test")
        code = substr(code, 1, at - 1)
    }
    scan(code, here, "code")
    code = ""
}

BEGIN {
    for (argument = 1; argument < ARGC; argument++) {
        count = split(module_of(ARGV[argument]), step, "::")
        path = step[1]
        modules[path]
        for (part = 2; part <= count; part++) {
            path = path "::" step[part]
            modules[path]
        }
    }
}
FNR == 1 {
    if (file != "") finish()
    file = FILENAME
}
{
    sub(/^[ \t]*\/\/.*/, "")
    sub(/[ \t]\/\/ .*/, "")
    gsub(/[ \t]+/, " ")
    code = code $0 " "
}
END { finish() }
