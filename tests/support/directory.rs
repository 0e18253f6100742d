//! Daemons with a directory store.

use std::path::PathBuf;

use uvxlan::testbed::{Host, Topology};

use super::nodes::{CONFIG, NodeUnderTest, eventually};

/// A folder with a directory store, and one for each daemon.
pub(crate) struct DirectoryStore {
    pub(crate) folder: tempfile::TempDir,
}

impl DirectoryStore {
    pub(crate) fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let this = Self { folder };
        std::fs::create_dir_all(this.path().join("subnets")).unwrap();
        this.put("config", config);
        this
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn flag(&self) -> String {
        format!("--store=dir:{}", self.path().display())
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        std::fs::write(self.path().join(key), value).unwrap();
    }

    pub(crate) fn start(&self, host: &Host, flags: &[&str]) -> NodeUnderTest {
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        let all: Vec<String> = std::iter::once(self.flag()).chain(flags).collect();
        NodeUnderTest::start(host, self.folder.path(), &all)
    }

    /// The file of a node's lease.
    pub(crate) fn lease(&self, node: &NodeUnderTest) -> PathBuf {
        let subnet = node.env.unwrap().subnet;
        let name = format!("{}-{}", subnet.network(), subnet.prefix_len());
        self.path().join("subnets").join(name)
    }
}

/// Daemons on the first two hosts, with containers that reach each other.
pub(crate) struct NodePair {
    pub(crate) topology: Topology,
    pub(crate) store: DirectoryStore,
    pub(crate) a: NodeUnderTest,
    pub(crate) b: NodeUnderTest,
}

impl NodePair {
    pub(crate) fn start(hosts: usize, flags: &[&str]) -> Self {
        let topology = Topology::with_hosts(hosts).unwrap();
        let store = DirectoryStore::new(CONFIG);
        let start = |number: usize| store.start(&topology.hosts()[number], flags);
        let (a, b) = (start(0), start(1));
        eventually("the containers reach each other", || a.reaches(&b));
        Self {
            topology,
            store,
            a,
            b,
        }
    }
}
