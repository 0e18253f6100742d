//! Two hosts with an overlay between them, and a container on each.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;

use super::daemon::{DaemonProcess, SubnetEnv};
use super::host::{Container, Host, UNDERLAY_DEVICE};
use super::kernel_vxlan::KernelVxlan;
use super::namespace::TestbedError;
use super::nic::NicClass;
use super::topology::Topology;
use super::traffic::{PingRequest, ping};
use crate::wire::vxlan::DEFAULT_PORT;
use crate::wire::{MacAddr, Vni};

/// MTU of the kernel's overlay on this underlay, as flannel sets it.
const KERNEL_MTU: u32 = 1450;
/// The network config of the daemons.
pub(crate) const CONFIG: &str = r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}"#;
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Folder of the store.
const STORE: &str = "store";
const PING_TIMEOUT: Duration = Duration::from_millis(200);
/// Pings until the containers must have reached each other.
const PING_RETRIES: usize = 50;

/// Two hosts, and a container on each that reaches the other.
#[derive(Debug)]
pub struct Pair {
    /// The hosts.
    pub topology: Topology,
    /// One container on each.
    pub containers: [Container; 2],
    /// The daemons on the hosts, unless the kernel carries the packets.
    pub daemons: Vec<DaemonProcess>,
}

impl Pair {
    /// With the kernel's own vxlan, set up as flannel does.
    ///
    /// # Errors
    /// If the kernel refuses; see [`super::kernel_has_vxlan`].
    pub fn kernel() -> Result<Self, TestbedError> {
        let topology = Topology::two_hosts()?;
        let (a, b) = topology.pair()?;
        let subnets = [1, 2].map(|n| Ipv4Net::new_assert([10, 42, n, 0].into(), 24));
        let macs = [1, 2].map(|n| MacAddr([2, 0, 0, 0, 0, n]));
        let start = |host, at: usize| {
            KernelVxlan::start(host, Vni::DEFAULT, DEFAULT_PORT, subnets[at], macs[at])
        };
        let devices = [start(a, 0)?, start(b, 1)?];
        devices[0].add_peer(subnets[1], b.address(), macs[1])?;
        devices[1].add_peer(subnets[0], a.address(), macs[0])?;
        let containers = [
            a.add_container(subnets[0], KERNEL_MTU)?,
            b.add_container(subnets[1], KERNEL_MTU)?,
        ];
        Ok(Self {
            topology,
            containers,
            daemons: Vec::new(),
        })
    }

    /// With `program` as the daemon on each host, and a store and all files in `folder`.
    ///
    /// # Errors
    /// If a daemon is not ready in time, or the containers do not reach each other.
    pub fn uvxlan(program: &Path, folder: &Path, flags: &[&str]) -> Result<Self, TestbedError> {
        let topology = Topology::two_hosts()?;
        write_config(folder)?;
        let mut daemons = start_daemons(&topology, program, folder, flags)?;
        let served = daemons
            .iter_mut()
            .map(|daemon| daemon.ready(READY_TIMEOUT))
            .collect::<Result<Vec<_>, _>>()?;
        Self::of_daemons(topology, daemons, &served)
    }

    /// With a daemon on each host, in the order of the hosts.
    pub(crate) fn of_daemons(
        topology: Topology,
        daemons: Vec<DaemonProcess>,
        served: &[SubnetEnv],
    ) -> Result<Self, TestbedError> {
        let (a, b) = topology.pair()?;
        let [first, second] = served else {
            return Err(TestbedError::Request("two daemons make a pair".into()));
        };
        let containers = [
            a.add_container(first.subnet, first.mtu)?,
            b.add_container(second.subnet, second.mtu)?,
        ];
        let pair = Self {
            topology,
            containers,
            daemons,
        };
        pair.wait_until_reachable()?;
        Ok(pair)
    }

    /// The daemon that was ready first does not know the other yet.
    fn wait_until_reachable(&self) -> Result<(), TestbedError> {
        let [a, b] = &self.containers;
        for _ in 0..PING_RETRIES {
            let request = PingRequest {
                count: 1,
                timeout: PING_TIMEOUT,
                ..PingRequest::new(b.address())
            };
            if ping(a.namespace(), request)?.is_complete() {
                return Ok(());
            }
        }
        Err(TestbedError::Request(format!(
            "no answer from {} at {} within ten seconds",
            b.address(),
            a.address()
        )))
    }

    /// Sets the features of the hosts' underlay devices to those of this NIC class.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_nic(&self, class: NicClass) -> Result<(), TestbedError> {
        for host in self.topology.hosts() {
            class.apply(host.node(), UNDERLAY_DEVICE)?;
        }
        Ok(())
    }
}

/// Creates a store in `folder` with the network config; returns its path.
pub(crate) fn write_config(folder: &Path) -> Result<PathBuf, TestbedError> {
    let store = folder.join(STORE);
    let written = fs::create_dir_all(&store).and_then(|()| fs::write(store.join("config"), CONFIG));
    written.map_err(|source| TestbedError::Io {
        what: "write the network config".into(),
        place: store.display().to_string(),
        source,
    })?;
    Ok(store)
}

/// Starts `program` as the daemon on each host, with the store in `folder`, where each host
/// also has a folder of its own.
pub(crate) fn start_daemons(
    topology: &Topology,
    program: &Path,
    folder: &Path,
    flags: &[&str],
) -> Result<Vec<DaemonProcess>, TestbedError> {
    let store = format!("--store=dir:{}", folder.join(STORE).display());
    let start = |host: &Host| {
        let own = folder.join(host.node().name());
        let flags = flags.iter().copied().chain([store.as_str()]);
        DaemonProcess::start(program, host, &own, flags)
    };
    topology.hosts().iter().map(start).collect()
}
