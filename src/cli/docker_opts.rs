//! `uvxlan docker-opts`: turns the subnet file into dockerd's options, byte for byte as
//! flannel's `mk-docker-opts.sh` does.
//!
//! The script sources the subnet file in a shell; this command reads its assignments and
//! executes nothing. It omits the check at the end of newer scripts, which fail if there is a
//! route to the node's own subnet: with that, only the first start would succeed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{FAILURE, OK, fail};
use crate::daemon::state::{atomic_file, subnet_env};

/// Arguments of `uvxlan docker-opts`.
#[derive(clap::Args, Debug)]
pub struct DockerOptsArgs {
    /// Subnet file to read
    #[arg(
        short = 'f',
        value_name = "FILE",
        default_value = "/run/flannel/subnet.env"
    )]
    pub input: PathBuf,
    /// File to write
    #[arg(
        short = 'd',
        value_name = "FILE",
        default_value = "/run/docker_opts.env"
    )]
    pub output: PathBuf,
    /// Write the individual variables only (DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU)
    #[arg(short = 'i')]
    pub individual: bool,
    /// Write the combined variable only
    #[arg(short = 'c')]
    pub combined: bool,
    /// Name of the combined variable
    #[arg(short = 'k', value_name = "NAME", default_value = "DOCKER_OPTS")]
    pub key: String,
    /// Omit the masquerade option
    #[arg(short = 'm')]
    pub without_masquerade: bool,
}

/// Why there is nothing to write.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// `FLANNEL_IPMASQ` is neither true nor false; the message is the script's.
    #[error("Invalid value of FLANNEL_IPMASQ: {0}")]
    IpMasq(String),
    /// The name given by `-k` is unusable.
    #[error("-k {0:?} is not a variable name: use letters, digits and _, and no digit first")]
    Key(String),
}

pub(super) fn run(args: &DockerOptsArgs) -> ExitCode {
    match write(args) {
        Ok(()) => ExitCode::from(OK),
        Err(message) => fail("docker-opts", FAILURE, message),
    }
}

fn write(args: &DockerOptsArgs) -> Result<(), String> {
    let input = match std::fs::read(&args.input) {
        Ok(text) => text,
        // As the script does: no file, no options.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(format!("cannot read {}: {error}", args.input.display())),
    };
    let text = render(&input, args).map_err(|error| error.to_string())?;
    put(&args.output, text.as_bytes())
        .map_err(|error| format!("cannot write {}: {error}", args.output.display()))
}

/// Replaces a regular file atomically; writes into a pipe or a terminal (`-d /dev/stdout`).
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => std::fs::write(path, bytes),
        _ => atomic_file::write(path, bytes, 0o644),
    }
}

/// Turns the input file's text into the output file's.
///
/// # Errors
/// [`RenderError`], where the script too fails before it writes anything.
pub fn render(input: &[u8], args: &DockerOptsArgs) -> Result<String, RenderError> {
    let key = args.key.as_str();
    let first_is_digit = key.starts_with(|c: char| c.is_ascii_digit());
    if key.is_empty()
        || first_is_digit
        || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return Err(RenderError::Key(key.to_owned()));
    }
    // Sorted, because a shell lists its variables in this order too.
    let mut variables: BTreeMap<String, String> = subnet_env::env_lines(input).collect();
    let set = |variables: &BTreeMap<String, String>, name: &str| {
        variables
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    if let Some(subnet) = set(&variables, "FLANNEL_SUBNET") {
        variables.insert("DOCKER_OPT_BIP".into(), format!("--bip={subnet}"));
    }
    if let Some(mtu) = set(&variables, "FLANNEL_MTU") {
        variables.insert("DOCKER_OPT_MTU".into(), format!("--mtu={mtu}"));
    }
    if let Some(ip_masq) = set(&variables, "FLANNEL_IPMASQ").filter(|_| !args.without_masquerade) {
        // Either flannel masquerades or docker does.
        let docker = match ip_masq.as_str() {
            "true" => "false",
            "false" => "true",
            _ => return Err(RenderError::IpMasq(ip_masq)),
        };
        variables.insert("DOCKER_OPT_IPMASQ".into(), format!("--ip-masq={docker}"));
    }
    let options: Vec<(&String, &String)> = variables
        .iter()
        .filter(|(name, _)| name.starts_with("DOCKER_OPT_"))
        .collect();
    let mut text = String::new();
    let both = args.individual == args.combined;
    if args.individual || both {
        for (name, value) in &options {
            text.push_str(&format!("{name}=\"{value}\"\n"));
        }
    }
    if args.combined || both {
        let mut combined = set(&variables, key).map_or(String::new(), |before| before + " ");
        for (_, value) in &options {
            combined.push(' ');
            combined.push_str(value);
        }
        text.push_str(&format!("{key}=\"{combined}\"\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: DockerOptsArgs,
    }

    const SAMPLE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
    const INDIVIDUAL: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
    const OPTIONS: &str = "=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

    fn rendered(input: &str, words: &str) -> Result<String, RenderError> {
        let words = std::iter::once("docker-opts").chain(words.split_whitespace());
        render(input.as_bytes(), &Command::parse_from(words).args)
    }

    #[test]
    fn each_row_of_the_scripts_table() {
        let both = format!("{INDIVIDUAL}DOCKER_OPTS{OPTIONS}");
        let table = [
            ("", both.clone()),
            ("-i -c", both),
            ("-i", INDIVIDUAL.to_owned()),
            ("-c", format!("DOCKER_OPTS{OPTIONS}")),
            ("-k CUSTOM_KEY", format!("{INDIVIDUAL}CUSTOM_KEY{OPTIONS}")),
            (
                "-m",
                "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\nDOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n".to_owned(),
            ),
            ("-m -c", "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n".to_owned()),
        ];
        for (words, expected) in table {
            assert_eq!(rendered(SAMPLE, words), Ok(expected), "{words}");
        }
        assert_eq!(
            rendered("", ""),
            Ok("DOCKER_OPTS=\"\"\n".to_owned()),
            "no input file"
        );
        assert_eq!(
            rendered("FLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", ""),
            Ok("DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --ip-masq=false --mtu=1450\"\n".to_owned()),
        );
        assert_eq!(
            rendered("FLANNEL_IPMASQ=maybe\n", ""),
            Err(RenderError::IpMasq("maybe".to_owned()))
        );
    }

    #[test]
    fn a_second_run_over_its_own_output_doubles_the_options_as_the_script_does() {
        let seed = "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.28.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let first = rendered(seed, "-k DOCKER_NETWORK_OPTIONS").unwrap();
        let options = " --bip=172.20.28.1/24 --ip-masq=false --mtu=1450";
        assert!(first.ends_with(&format!("DOCKER_NETWORK_OPTIONS=\"{options}\"\n")));
        let second = rendered(&first, "-k DOCKER_NETWORK_OPTIONS").unwrap();
        assert!(
            second.ends_with(&format!("DOCKER_NETWORK_OPTIONS=\"{options} {options}\"\n")),
            "{second}"
        );
    }

    #[test]
    fn a_variables_name_cannot_smuggle_lines() {
        for key in ["", "A B", "1A", "A=B", "A\nB"] {
            let mut args = Command::parse_from(["docker-opts"]).args;
            args.key = key.to_owned();
            assert_eq!(render(b"", &args), Err(RenderError::Key(key.to_owned())));
        }
    }
}
