//! Leases in a directory, for a fixed set of hosts without etcd: local, shared over the
//! network, or copied around.
//!
//! The layout is etcd's with files for keys: `<path>/config` and
//! `<path>/subnets/<a.b.c.d>-<len>`, with the same values, so that a person can write them
//! with `cp` and read them with `cat`. Names that start with a dot are not records.
//!
//! What differs from etcd:
//! * Records do not expire. A host that is gone for good has to be removed with `rm`.
//!   `expires` is false for every record, so the TTLs that callers give have no effect.
//! * There is no history. A watch compares scans; it sees that a record changed, not how
//!   often.
//! * A revision is a hash over name, content, inode and modification time, so it differs
//!   after every write, but does not grow. `created` is the time of the last write.
//! * Exclusion between writers is a lock on `<path>/.lock` (`flock(2)`). It works between
//!   processes of one host and over NFS (Linux 2.6.12 and later); in a directory that is
//!   merely copied, two hosts can take the same subnet.

mod scan;
mod watch;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Mutex, mpsc};

use super::{
    CHALLENGE_TIMEOUT, Listing, Record, Store, StoreError, StoreErrorKind, WatchEvent, WriteOutcome,
};

/// Longest wait for another writer's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DirectoryId {
    device: u64,
    inode: u64,
}

/// A lease store in a directory. Cloning is cheap; clones share what they wrote.
#[derive(Clone, Debug)]
pub struct DirStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Whether `subnets/` was ever seen: then its absence is not an empty list, but an unmounted
    /// file system or a copy in progress.
    seen: AtomicBool,
    /// The file system that `subnets/` was on.
    device: AtomicU64,
    /// Records that we wrote, by name: alive as long as they exist.
    own: Mutex<Vec<String>>,
}

impl DirStore {
    /// A store in `path`, which the first write creates if it is missing.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let inner = Inner {
            path: path.into(),
            seen: AtomicBool::new(false),
            device: AtomicU64::new(0),
            own: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Runs blocking file work off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        name: &str,
        work: impl FnOnce(&Inner, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let result = tokio::task::spawn_blocking(move || work(&inner, &owned))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        result.map_err(|source| self.inner.error(operation, name, source))
    }

    fn check_name(&self, operation: &'static str, name: &str) -> Result<(), StoreError> {
        StoreError::check_name(operation, &self.inner.subnets().display().to_string(), name)
    }
}

impl Inner {
    fn subnets(&self) -> PathBuf {
        self.path.join("subnets")
    }

    fn error(&self, operation: &'static str, name: &str, source: io::Error) -> StoreError {
        let kind = match source.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename => StoreErrorKind::Permanent,
            _ => StoreErrorKind::Transient,
        };
        StoreError {
            operation,
            location: format!("directory {}", self.path.join(name).display()),
            kind,
            source: Box::new(source),
        }
    }

    /// All records, and the directory that they are from. A missing `subnets/` counts as empty
    /// only if it never existed.
    fn list(&self) -> io::Result<(Listing, Option<DirectoryId>)> {
        let Some(directory) = self.locate()? else {
            return Ok((scan::listing(Vec::new()), None));
        };
        let listing = scan::scan(&self.subnets())?;
        self.device.store(directory.device, Ordering::Relaxed);
        self.seen.store(true, Ordering::Relaxed);
        Ok((listing, Some(directory)))
    }

    /// The directory `subnets/`; `None` before it is created. An error if it cannot be the one
    /// that was seen: after an unmount, the mount point is an empty directory, which must not
    /// pass for an empty store, and our lease must not be written there.
    fn locate(&self) -> io::Result<Option<DirectoryId>> {
        let subnets = self.subnets();
        let seen = self.seen.load(Ordering::Relaxed);
        let metadata = match fs::metadata(&subnets) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !seen => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = DirectoryId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        if seen
            && found.device != self.device.load(Ordering::Relaxed)
            && fs::read_dir(&subnets)?.next().is_none()
        {
            return Err(io::Error::other(
                "it is empty, and on another file system than before: is it unmounted?",
            ));
        }
        Ok(Some(found))
    }

    /// Takes the writers' lock, after creating the directories. Dropping the file releases it.
    fn lock(&self) -> io::Result<File> {
        self.locate()?;
        fs::create_dir_all(self.subnets())?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path.join(".lock"))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process has held the lock .lock for 5 s",
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes `value` if the record is as expected: absent, or of a revision. Readers see
    /// the old bytes or the new ones, also after a crash.
    fn put_if(&self, name: &str, value: &[u8], expected: Option<i64>) -> io::Result<WriteOutcome> {
        let _lock = self.lock()?;
        let subnets = self.subnets();
        let target = subnets.join(name);
        let found = scan::read(&subnets, name)?;
        if found.map(|record| record.revision) != expected {
            return Ok(WriteOutcome::Conflict);
        }
        let mut file = self.temporary()?;
        file.write_all(value)?;
        file.as_file().sync_all()?;
        if expected.is_some() {
            file.persist(&target)?;
        } else if let Err(error) = file.persist_noclobber(&target) {
            // Somebody without the lock: a person with cp.
            return match error.error.kind() {
                io::ErrorKind::AlreadyExists => Ok(WriteOutcome::Conflict),
                _ => Err(error.error),
            };
        }
        File::open(&subnets)?.sync_all()?;
        match scan::read(&subnets, name)? {
            Some(record) => Ok(WriteOutcome::Written {
                revision: record.revision,
            }),
            None => Ok(WriteOutcome::Conflict),
        }
    }

    /// A file beside the records, on the same file system. Under the lock, whatever lies
    /// there is a crashed writer's and goes.
    fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        let dir = self.path.join(".tmp");
        fs::create_dir_all(&dir)?;
        for left in fs::read_dir(&dir)?.flatten() {
            let _ = fs::remove_file(left.path());
        }
        tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(dir)
    }

    fn delete_if(&self, name: &str, expected: i64) -> io::Result<WriteOutcome> {
        let _lock = self.lock()?;
        let subnets = self.subnets();
        match scan::read(&subnets, name)? {
            Some(record) if record.revision == expected => {
                fs::remove_file(subnets.join(name))?;
                File::open(&subnets)?.sync_all()?;
                Ok(WriteOutcome::Written { revision: expected })
            }
            _ => Ok(WriteOutcome::Conflict),
        }
    }
}

#[async_trait]
impl Store for DirStore {
    fn describe(&self) -> String {
        format!("directory {}", self.inner.path.display())
    }

    /// On a network's file system the kernel tells nothing of what other hosts write: they see
    /// it when they look again.
    fn challenge_timeout(&self) -> Duration {
        watch::SCAN_INTERVAL + CHALLENGE_TIMEOUT
    }

    async fn config(&self) -> Result<Option<Bytes>, StoreError> {
        self.blocking("reading the network config", "config", |inner, name| {
            scan::read_bytes(&inner.path.join(name))
        })
        .await
    }

    async fn put_config(&self, value: Bytes) -> Result<(), StoreError> {
        let operation = "writing the network config";
        self.blocking(operation, "config", move |inner, name| {
            let _lock = inner.lock()?;
            let mut file = inner.temporary()?;
            file.write_all(&value)?;
            file.as_file().sync_all()?;
            file.persist(inner.path.join(name))?;
            File::open(&inner.path)?.sync_all()
        })
        .await
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        self.blocking("listing the leases", "subnets", |inner, _| {
            inner.list().map(|(listing, _)| listing)
        })
        .await
    }

    async fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let operation = "reading a lease";
        self.check_name(operation, name)?;
        self.blocking(operation, name, |inner, name| {
            inner.locate()?;
            scan::read(&inner.subnets(), name)
        })
        .await
    }

    async fn create(
        &self,
        name: &str,
        value: Bytes,
        _ttl: Duration,
    ) -> Result<WriteOutcome, StoreError> {
        self.reserve(name, value).await
    }

    async fn reserve(&self, name: &str, value: Bytes) -> Result<WriteOutcome, StoreError> {
        let operation = "creating a lease";
        self.check_name(operation, name)?;
        let outcome = self
            .blocking(operation, name, move |inner, name| {
                inner.put_if(name, &value, None)
            })
            .await?;
        self.note_own(name, outcome).await;
        Ok(outcome)
    }

    async fn replace(
        &self,
        name: &str,
        value: Bytes,
        expected: i64,
        _ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let operation = "writing a lease";
        self.check_name(operation, name)?;
        let outcome = self
            .blocking(operation, name, move |inner, name| {
                inner.put_if(name, &value, Some(expected))
            })
            .await?;
        self.note_own(name, outcome).await;
        Ok(outcome)
    }

    async fn delete(&self, name: &str, expected: i64) -> Result<WriteOutcome, StoreError> {
        let operation = "deleting a lease";
        self.check_name(operation, name)?;
        let outcome = self
            .blocking(operation, name, move |inner, name| {
                inner.delete_if(name, expected)
            })
            .await?;
        if outcome != WriteOutcome::Conflict {
            self.inner.own.lock().await.retain(|own| own != name);
        }
        Ok(outcome)
    }

    /// A directory needs no keepalive: true as long as a record that we wrote exists.
    async fn keep_alive(&self) -> Result<bool, StoreError> {
        let own = self.inner.own.lock().await.clone();
        self.blocking("looking for our lease", "subnets", move |inner, _| {
            inner.locate()?;
            let subnets = inner.subnets();
            for name in &own {
                if subnets.join(name).try_exists()? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    fn watch(&self, revision: i64) -> mpsc::Receiver<WatchEvent> {
        watch::spawn(Arc::clone(&self.inner), revision)
    }
}

impl DirStore {
    async fn note_own(&self, name: &str, outcome: WriteOutcome) {
        let mut own = self.inner.own.lock().await;
        if outcome != WriteOutcome::Conflict && !own.iter().any(|known| known == name) {
            own.push(name.to_owned());
        }
    }
}

/// Dot names are editors' and copiers' temporary files.
fn is_record_name(name: &str) -> bool {
    !name.starts_with('.')
}
