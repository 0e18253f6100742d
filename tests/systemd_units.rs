//! The units, as systemd reads them.

use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// Copies the units with programs that exist here, and a docker.service to hang the drop-in
/// on.
fn staged() -> tempfile::TempDir {
    let target = tempfile::tempdir().unwrap();
    let program = "/bin/true";
    let unit = read("uvxlan.service").replace("/usr/local/sbin/uvxlan", program);
    std::fs::write(target.path().join("uvxlan.service"), unit).unwrap();
    let drop_in = read("docker.service.d/uvxlan.conf").replace("/usr/bin/dockerd", program);
    let place = target.path().join("docker.service.d");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("uvxlan.conf"), drop_in).unwrap();
    let docker = format!("[Unit]\nDescription=stand-in\n[Service]\nExecStart={program}\n");
    std::fs::write(target.path().join("docker.service"), docker).unwrap();
    target
}

fn verify(unit: &Path) -> Option<String> {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(unit)
        .env(
            "SYSTEMD_UNIT_PATH",
            format!("{}:", unit.parent()?.display()),
        )
        .output();
    let Ok(output) = output else {
        println!("SKIPPED: there is no systemd-analyze");
        return None;
    };
    let own = unit.file_name()?.to_string_lossy().into_owned();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let own_lines = text
        .lines()
        .filter(|line| line.contains(&own) || line.contains("uvxlan"));
    Some(own_lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn systemd_finds_nothing_wrong() {
    let staged = staged();
    for unit in ["uvxlan.service", "docker.service"] {
        let Some(found) = verify(&staged.path().join(unit)) else {
            return;
        };
        assert_eq!(found, "", "{unit}");
    }
    // Else this test could not fail.
    let broken = staged.path().join("uvxlan.service");
    let unit = std::fs::read_to_string(&broken).unwrap();
    std::fs::write(&broken, unit.replace("Type=notify", "Tpye=notify")).unwrap();
    assert_ne!(verify(&broken).unwrap(), "");
}

#[test]
fn docker_outlives_a_restart() {
    for name in ["uvxlan.service", "docker.service.d/uvxlan.conf"] {
        for line in read(name).lines().filter(|line| !line.starts_with('#')) {
            for binding in ["Requires=", "BindsTo=", "PartOf=", "Requisite="] {
                assert!(!line.starts_with(binding), "{name}: {line}");
            }
        }
    }
}
