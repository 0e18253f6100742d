//! Names of log events, by which people filter and alert: each line has one, and the list in the
//! docs is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Events = BTreeMap<String, BTreeSet<String>>;

/// The arguments of a macro call, whose parenthesis opens before `text`.
fn arguments(text: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (1, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

/// Adds the events of a source file to the list.
fn read(path: &Path, events: &mut Events) {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("mod tests {").next().unwrap();
    for level in ["error", "warn", "info", "debug", "trace"] {
        let open = format!("{level}!(");
        for (at, _) in code.match_indices(&open) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let said = arguments(&code[at + open.len()..]);
            let name = said.split_once("event = \"");
            let name = name.and_then(|(_, rest)| rest.split('"').next());
            match name {
                Some(name) => {
                    let levels = events.entry(name.to_owned()).or_default();
                    levels.insert(level.to_owned());
                }
                // For debugging, these are read together with their module.
                None if matches!(level, "debug" | "trace") => {}
                None => panic!("{}: a line without event: {level}!({said})", path.display()),
            }
        }
    }
}

fn sources(folder: &Path, events: &mut Events) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, events);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            read(&path, events);
        }
    }
}

/// The table's rows: `| `name` | levels | words |`.
fn documented(guide: &str) -> Events {
    let rows = guide.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let levels = cells.next()?.split(", ").map(str::to_owned).collect();
        assert!(
            cells.next().is_some_and(|words| !words.is_empty()),
            "{line}"
        );
        Some((name.to_owned(), levels))
    });
    rows.collect()
}

#[test]
fn the_list_of_events_is_complete_and_each_line_has_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut written = Events::new();
    sources(&root.join("src"), &mut written);
    assert!(written.len() > 50, "{written:#?}");
    let listed = documented(&std::fs::read_to_string(root.join("docs/events.md")).unwrap());
    let lacking: Vec<_> = written
        .iter()
        .filter(|(name, levels)| listed.get(*name) != Some(*levels))
        .collect();
    assert!(
        lacking.is_empty(),
        "missing or different in docs/events.md: {lacking:#?}"
    );
    let gone: Vec<_> = listed
        .keys()
        .filter(|name| !written.contains_key(*name))
        .collect();
    assert!(
        gone.is_empty(),
        "in docs/events.md and in no source: {gone:?}"
    );
}
