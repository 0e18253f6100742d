//! Keys of etcd, built as flannel builds them.

/// Go's `path.Clean`, which flannel applies to its keys: drops `//` and `.`, resolves `..`,
/// and leaves no slash at the end.
pub(in super::super) fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    if rooted { format!("/{joined}") } else { joined }
}

/// Go's `path.Join` of a clean path and one element.
pub(in super::super) fn join(path: &str, element: &str) -> String {
    clean_path(&match path {
        "" => element.to_owned(),
        path => format!("{path}/{element}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_cleaned_as_go_does() {
        for (given, expected) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("/coreos.com//network/", "/coreos.com/network"),
            ("//a/./b/../c", "/a/c"),
            ("/../a", "/a"),
            ("a/../../b", "../b"),
            ("/", "/"),
        ] {
            assert_eq!(clean_path(given), expected, "{given}");
        }
        assert_eq!(join("/", "config"), "/config");
        assert_eq!(join("", "config"), "config");
        assert_eq!(join("/a", "config"), "/a/config");
    }
}
