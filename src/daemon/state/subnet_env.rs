//! The subnet file (`/run/flannel/subnet.env`): docker, CNI plugins and scripts read it, and the
//! next run of this daemon learns from it which subnet it had.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;

/// The file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetFile {
    /// The overlay network.
    pub network: Ipv4Net,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// MTU of the overlay device, and so of the containers.
    pub mtu: u16,
    /// Whether this daemon masquerades, so that docker must not.
    pub ip_masq: bool,
}

impl SubnetFile {
    /// The file's text, byte for byte as by flannel's `WriteSubnetFile`: the subnet is written as
    /// the first host's address with the subnet's length.
    #[must_use]
    pub fn render(&self) -> String {
        let gateway = Ipv4Addr::from_bits(self.subnet.network().to_bits().wrapping_add(1));
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={gateway}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            self.subnet.prefix_len(),
            self.mtu,
            self.ip_masq
        )
    }
}

/// What an earlier run, or flannel, wrote into the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Previous {
    /// The network, if the file names one.
    pub network: Option<Ipv4Net>,
    /// The subnet, if the file names exactly one.
    pub subnet: Option<Ipv4Net>,
}

/// Parses the file.
///
/// Some tutorials let `mk-docker-opts.sh -d` overwrite this file with docker's options; then
/// `DOCKER_OPT_BIP` still has the subnet. Comma-separated lists are read as flannel reads them:
/// items that are no prefix are skipped, and a list of more than one counts as none.
#[must_use]
pub fn parse(text: &[u8]) -> Previous {
    let mut previous = Previous::default();
    let mut docker = None;
    for (key, value) in env_lines(text) {
        match key.as_str() {
            "FLANNEL_NETWORK" => previous.network = only_prefix(&value),
            "FLANNEL_SUBNET" => previous.subnet = only_prefix(&value),
            "DOCKER_OPT_BIP" => docker = value.strip_prefix("--bip=").and_then(only_prefix),
            _ => {}
        }
    }
    previous.subnet = previous.subnet.or(docker);
    previous
}

fn only_prefix(list: &str) -> Option<Ipv4Net> {
    let mut prefixes = list
        .split(',')
        .filter_map(|text| text.trim().parse::<Ipv4Net>().ok());
    match (prefixes.next(), prefixes.next()) {
        (Some(only), None) => Some(only.trunc()),
        _ => None,
    }
}

/// The assignments in a file of shell syntax, in order. Handles comments, `export`, single and
/// double quotes; expands and executes nothing.
pub fn env_lines(text: &[u8]) -> impl Iterator<Item = (String, String)> {
    let text = String::from_utf8_lossy(text).into_owned();
    let lines: Vec<(String, String)> = text.lines().filter_map(assignment).collect();
    lines.into_iter()
}

fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (key, value) = line.split_once('=')?;
    let name = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if key.is_empty() || !name || key.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    Some((key.to_owned(), unquoted(value)))
}

/// The word at the start of a shell value, without its quotes.
fn unquoted(value: &str) -> String {
    let mut word = String::new();
    let mut quote = None;
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            (None, blank) if blank.is_whitespace() => break,
            (None | Some('"'), '\\') => word.extend(characters.next()),
            (_, other) => word.push(other),
        }
    }
    word
}

/// Reads the file, if there is one.
pub(crate) fn read(path: &Path) -> io::Result<Previous> {
    match std::fs::read(path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Previous::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> SubnetFile {
        SubnetFile {
            network: "172.20.0.0/16".parse().unwrap(),
            subnet: "172.20.28.0/24".parse().unwrap(),
            mtu: 1450,
            ip_masq: true,
        }
    }

    fn subnet(text: &str) -> Option<String> {
        parse(text.as_bytes()).subnet.map(|net| net.to_string())
    }

    #[test]
    fn the_text_is_flannels() {
        assert_eq!(
            file().render(),
            "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.28.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        let read = parse(file().render().as_bytes());
        assert_eq!(
            read,
            Previous {
                network: Some(file().network),
                subnet: Some(file().subnet)
            }
        );
    }

    #[test]
    fn lists_and_garbage_are_read_as_flannel_reads_them() {
        assert_eq!(
            subnet("FLANNEL_SUBNET=10.244.1.0/24,not-a-cidr,10.244.2.0/24"),
            None
        );
        assert_eq!(
            subnet("FLANNEL_SUBNET=10.244.1.1/24,not-a-cidr").as_deref(),
            Some("10.244.1.0/24")
        );
        assert_eq!(subnet("FLANNEL_SUBNET=not-a-cidr"), None);
        assert_eq!(
            subnet("# FLANNEL_SUBNET=10.1.1.1/24\n\n=x\nFLANNEL_SUBNET"),
            None
        );
        let quoted = "export FLANNEL_SUBNET=\"10.1.2.1/24\" # ours\nFLANNEL_SUBNET_X='10.1.3.1/24'";
        assert_eq!(subnet(quoted).as_deref(), Some("10.1.2.0/24"));
    }

    #[test]
    fn a_file_overwritten_with_dockers_options_still_tells_the_subnet() {
        let overwritten = "DOCKER_OPT_BIP=\"--bip=172.20.28.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_NETWORK_OPTIONS=\" --bip=172.20.28.1/24\"\n";
        assert_eq!(subnet(overwritten).as_deref(), Some("172.20.28.0/24"));
    }

    #[test]
    fn without_the_file_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        assert_eq!(read(&path).unwrap(), Previous::default());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
