//! `uvxlan demo` as a person runs it.

use std::process::{Command, Output};

fn demo(arguments: &[&str]) -> Option<Output> {
    if let Err(reason) = uvxlan::testbed::available() {
        uvxlan::testbed::skipped(reason);
        return None;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        uvxlan::testbed::skipped("there is no /dev/net/tun");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_uvxlan"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    Some(output)
}

#[test]
fn the_story_ends_with_a_table_of_both_contenders() {
    let Some(output) = demo(&["--size", "16"]) else {
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let row = |name: &str| {
        text.lines()
            .rfind(|line| line.starts_with(name))
            .unwrap_or_default()
    };
    for name in ["uvxlan", "kernel vxlan"] {
        let row = row(name);
        if name == "kernel vxlan" && row.contains("not on this machine") {
            uvxlan::testbed::skipped(format!("no kernel vxlan: {row}"));
            continue;
        }
        assert!(row.contains(" 0/20 ") && row.contains(" 62 "), "{row}");
        assert!(row.ends_with("hash equal"), "{row}");
    }
}

#[test]
fn figures_come_as_json_too() {
    let Some(output) = demo(&["--size", "1", "--json", "--no-kernel"]) else {
        return;
    };
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let contenders = value["contenders"].as_array().unwrap();
    assert_eq!(contenders.len(), 1);
    assert_eq!(contenders[0]["hash_equal"], true);
    assert_eq!(contenders[0]["pings_received"], 20);
}
