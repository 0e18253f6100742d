//! Lists of any size, read in pages.

use etcd_client::GetOptions;

use super::super::etcd::MAX_ANSWER;
use super::super::{Listing, Record, StoreError};
use super::connection::CallError;
use super::failure::Fault;
use super::{Inner, revision_of};

/// Records of one page.
const PAGE_LIMIT: i64 = 1024;
/// Largest page, in bytes. A single record may be larger: etcd's limit for one is 1.5 MiB by
/// default. Records beyond 64 KiB are refused later.
const MAX_PAGE: usize = 8 << 20;

struct ListPage {
    revision: i64,
    records: Vec<Record>,
    /// The key from which the next page begins.
    next: Option<Vec<u8>>,
}

/// A list that is being read.
struct Pages {
    from: Vec<u8>,
    /// Its revision is 0 before the first page: for etcd that means the newest.
    listing: Listing,
}

impl Pages {
    fn begin(records: &str) -> Self {
        Self {
            from: records.as_bytes().to_vec(),
            listing: Listing {
                records: Vec::new(),
                revision: 0,
            },
        }
    }

    /// Adds a page; returns the list after the last one.
    fn add(&mut self, page: ListPage) -> Option<Listing> {
        let listing = &mut self.listing;
        if listing.revision == 0 {
            listing.revision = page.revision;
        }
        listing.records.extend(page.records);
        match page.next {
            Some(next) => {
                self.from = next;
                None
            }
            None => Some(Listing {
                records: std::mem::take(&mut listing.records),
                revision: listing.revision,
            }),
        }
    }
}

impl Inner {
    /// All records at one revision.
    pub(super) async fn list(&self) -> Result<Listing, StoreError> {
        let mut tries = 0;
        let mut limit = PAGE_LIMIT;
        let mut pages = Pages::begin(&self.records);
        loop {
            match self.page(&pages, limit).await {
                Ok(page) => {
                    if let Some(listing) = pages.add(page) {
                        return Ok(listing);
                    }
                    limit = (limit * 2).min(PAGE_LIMIT);
                }
                Err(error) if error.fault == Fault::TooLarge && limit > 1 => limit /= 4,
                // Compacted between two pages: start again at a newer revision.
                Err(error) if error.fault == Fault::Compacted && tries < 3 => {
                    tries += 1;
                    pages = Pages::begin(&self.records);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn page(&self, pages: &Pages, limit: i64) -> Result<ListPage, CallError> {
        let mut end = self.records.clone().into_bytes();
        if let Some(slash) = end.last_mut() {
            *slash += 1;
        }
        let options = GetOptions::new()
            .with_range(end)
            .with_revision(pages.listing.revision)
            .with_limit(limit);
        let most = if limit == 1 { MAX_ANSWER } else { MAX_PAGE };
        let options = &options;
        self.connection
            .call(
                "listing the leases",
                &self.records,
                |client, _| async move {
                    let mut kv = client.kv_client().max_decoding_message_size(most);
                    let answer = kv.get(pages.from.as_slice(), Some(options.clone())).await?;
                    let last = answer.kvs().last().filter(|_| answer.more());
                    Ok(ListPage {
                        revision: revision_of(answer.header())?,
                        records: answer.kvs().iter().map(|kv| self.record(kv)).collect(),
                        next: last.map(|kv| [kv.key(), &[0]].concat()),
                    })
                },
            )
            .await
    }
}
