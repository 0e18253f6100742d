//! Reads the records of a directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;

use super::super::{Listing, Record};
use super::is_record_name;

/// Bytes read of a file: one more than a record may have, so that a longer one is noticed
/// and refused where records are checked, but never read whole.
const MAX_READ: u64 = (64 << 10) + 1;

/// FNV-1a over 64 bits (draft-eastlake-fnv): good enough to notice a change, and the same
/// in every process.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// As a revision: positive, and never 0.
    fn revision(&self) -> i64 {
        i64::try_from(self.0 >> 1).unwrap_or(i64::MAX).max(1)
    }
}

/// A regular file's first bytes; `None` where it does not exist or is something else.
///
/// Anything else is found out before it is opened: opening a FIFO would wait forever.
pub(super) fn read_bytes(path: &Path) -> io::Result<Option<Bytes>> {
    Ok(read_file(path)?.map(|(bytes, _)| bytes))
}

fn read_file(path: &Path) -> io::Result<Option<(Bytes, fs::Metadata)>> {
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(error),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) => return absent(error),
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return absent(error),
    };
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(MAX_READ).read_to_end(&mut bytes)?;
    Ok(Some((bytes.into(), metadata)))
}

/// One record, or `None` where it does not exist.
pub(super) fn read(subnets: &Path, name: &str) -> io::Result<Option<Record>> {
    let Some((value, metadata)) = read_file(&subnets.join(name))? else {
        return Ok(None);
    };
    let mut hash = Fnv::new();
    hash.add(name.as_bytes());
    hash.add(&metadata.ino().to_be_bytes());
    hash.add(&metadata.mtime().to_be_bytes());
    hash.add(&metadata.mtime_nsec().to_be_bytes());
    hash.add(&metadata.size().to_be_bytes());
    hash.add(&value);
    let created = metadata
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.mtime_nsec());
    let revision = hash.revision();
    Ok(Some(Record {
        name: name.to_owned(),
        value,
        revision,
        created,
        expires: false,
    }))
}

/// All records, whole or not at all: a file that can't be read is an error of the list,
/// else its absence would be taken for a deletion.
pub(super) fn scan(subnets: &Path) -> io::Result<Listing> {
    let mut records = Vec::new();
    for entry in fs::read_dir(subnets)? {
        let name = entry?.file_name();
        // A name that is no UTF-8 can't be a subnet's.
        let Some(name) = name.to_str().filter(|name| is_record_name(name)) else {
            continue;
        };
        let in_context =
            |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
        records.extend(read(subnets, name).map_err(in_context)?);
    }
    Ok(listing(records))
}

/// A listing, whose revision is a hash over all records.
pub(super) fn listing(mut records: Vec<Record>) -> Listing {
    records.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Fnv::new();
    for record in &records {
        hash.add(&record.revision.to_be_bytes());
    }
    Listing {
        records,
        revision: hash.revision(),
    }
}
