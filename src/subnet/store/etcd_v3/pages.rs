//! A list that neither many records nor large ones can end.

use etcd_client::GetOptions;

use super::super::etcd::MAX_ANSWER;
use super::super::{Listing, Record, StoreError};
use super::connection::CallError;
use super::{Inner, revision_of};

/// Records of one page.
const PAGE: i64 = 1024;
/// Largest page, in bytes. A single record may be larger: etcd's limit for one is 1.5 MiB by
/// default, and nobody believes in one beyond 64 KiB.
const MAX_PAGE: usize = 8 << 20;

struct Page {
    revision: i64,
    records: Vec<Record>,
    /// The key from which the next page begins.
    next: Option<Vec<u8>>,
}

/// A list in the making.
struct Pages {
    from: Vec<u8>,
    /// Its revision is 0 until the first page has come: etcd's word for the newest.
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

    /// Takes a page in; the list, if that was the last one.
    fn take(&mut self, page: Page) -> Option<Listing> {
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
    /// All records, read in pages at one revision: neither many nor large ones end it.
    pub(super) async fn list(&self) -> Result<Listing, StoreError> {
        let mut tries = 0;
        let mut limit = PAGE;
        let mut pages = Pages::begin(&self.records);
        loop {
            match self.page(&pages, limit).await {
                Ok(page) => {
                    if let Some(listing) = pages.take(page) {
                        return Ok(listing);
                    }
                    limit = (limit * 2).min(PAGE);
                }
                Err(error) if error.is_too_large() && limit > 1 => limit /= 4,
                // Somebody compacted between two pages: what was read is of no use.
                Err(error) if error.is_compacted() && tries < 3 => {
                    tries += 1;
                    pages = Pages::begin(&self.records);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn page(&self, pages: &Pages, limit: i64) -> Result<Page, CallError> {
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
                    Ok(Page {
                        revision: revision_of(answer.header())?,
                        records: answer.kvs().iter().map(|kv| self.record(kv)).collect(),
                        next: last.map(|kv| [kv.key(), &[0]].concat()),
                    })
                },
            )
            .await
    }
}
