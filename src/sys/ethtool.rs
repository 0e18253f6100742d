//! Offload features of network devices (`ethtool -K`).
//!
//! Names and rules are those of `net/ethtool/ioctl.c` and `net/ethtool/common.c`
//! (`netdev_features_strings`).

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const SIOCETHTOOL: u64 = 0x8946;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const SET_FEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`: the set of strings that names the features.
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const NAME_LEN: usize = 32;

/// Turns features of a device in the calling thread's network namespace on or off. A feature
/// that this kernel does not know counts as off.
///
/// # Errors
/// `NotFound` if an unknown feature is to be turned on; else the kernel's (`ENODEV`, `EPERM`).
/// Fixed features are silently left as they are.
pub fn set_features(device: &str, wanted: &[(&str, bool)]) -> io::Result<()> {
    let channel = Channel::open(device)?;
    let names = channel.feature_names()?;
    // struct ethtool_sfeatures: command, number of blocks, then pairs (valid, requested).
    let blocks = names.len().div_ceil(32);
    let mut request = vec![0u32; 2 + blocks * 2];
    request[0] = SET_FEATURES;
    request[1] = blocks as u32;
    for (name, on) in wanted {
        let Some(bit) = names.iter().position(|known| known == name) else {
            if *on {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("this kernel has no device feature {name}"),
                ));
            }
            continue;
        };
        let block = 2 + bit / 32 * 2;
        request[block] |= 1 << (bit % 32);
        if *on {
            request[block + 1] |= 1 << (bit % 32);
        }
    }
    channel.call(&mut request)
}

struct Channel {
    socket: UdpSocket,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Channel {
    /// Any socket gives access to the devices of its namespace.
    fn open(device: &str) -> io::Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        if device.is_empty() || device.len() >= name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (slot, byte) in name.iter_mut().zip(device.bytes()) {
            *slot = byte as libc::c_char;
        }
        Ok(Self {
            socket: UdpSocket::bind(("0.0.0.0", 0))?,
            name,
        })
    }

    fn feature_names(&self) -> io::Result<Vec<String>> {
        // struct ethtool_sset_info: command, reserved, mask (64 bits), then one count.
        let mut info = [GET_SET_INFO, 0, 0, 0, 0];
        let [low, high] = words(1u64 << FEATURES);
        (info[2], info[3]) = (low, high);
        self.call(&mut info)?;
        let count = info[4] as usize;
        // struct ethtool_gstrings: command, set, count, then the names.
        let mut strings = vec![0u32; 3 + count * NAME_LEN / 4];
        strings[..3].copy_from_slice(&[GET_STRINGS, FEATURES, count as u32]);
        self.call(&mut strings)?;
        let bytes: Vec<u8> = strings[3..]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let names = bytes.chunks_exact(NAME_LEN).map(|name| {
            let end = name.iter().position(|byte| *byte == 0);
            String::from_utf8_lossy(&name[..end.unwrap_or(name.len())]).into_owned()
        });
        Ok(names.collect())
    }

    /// Runs one command. `words` must be a complete request, as long as the counts in it say.
    /// Every caller above guarantees that.
    fn call(&self, words: &mut [u32]) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: `request` lives through the call. Its pointer refers to `words`, which is
        // borrowed exclusively and as long as the counts in it say.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// A 64-bit field as two words in memory order.
const fn words(value: u64) -> [u32; 2] {
    if cfg!(target_endian = "little") {
        [value as u32, (value >> 32) as u32]
    } else {
        [(value >> 32) as u32, value as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_the_usual_features() {
        let names = Channel::open("lo").unwrap().feature_names().unwrap();
        assert!(
            names.iter().any(|name| name == "tx-tcp-segmentation"),
            "{names:?}"
        );
        assert!(names.iter().any(|name| name == "rx-gro"), "{names:?}");
    }

    #[test]
    fn an_unknown_feature_can_only_be_turned_off() {
        let unknown = set_features("lo", &[("no-such-feature", true)]);
        assert_eq!(unknown.unwrap_err().kind(), io::ErrorKind::NotFound);
        let device = set_features("no-such-device", &[]).unwrap_err();
        assert_eq!(device.raw_os_error(), Some(libc::ENODEV));
    }
}
