//! `uvxlan lease`: lists, shows, reserves and releases leases.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::store::{CommandError, StoreArgs, finish};
use crate::cli::excerpt;
use crate::subnet::allocate::compatible;
use crate::subnet::config::NetworkConfig;
use crate::subnet::key::SubnetKey;
use crate::subnet::lease::{LeaseAttrs, NodeId, VxlanData};
use crate::subnet::manager::PeerSet;
use crate::subnet::store::{Listing, Record, Store, WriteOutcome};
use crate::subnet::validate::{Context, Rejection};

/// Arguments of `uvxlan lease`.
#[derive(clap::Args, Debug)]
pub(crate) struct LeaseArgs {
    #[command(subcommand)]
    command: LeaseCommand,
}

#[derive(clap::Subcommand, Debug)]
enum LeaseCommand {
    /// List all records, and why some are refused
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Print one record as it is in the datastore
    Show {
        /// Subnet (10.3.7.0/24) or name of the record (10.3.7.0-24)
        subnet: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Reserve a subnet for a host, with a lease that does not expire
    Reserve {
        /// Subnet (10.3.7.0/24)
        #[arg(value_parser = subnet)]
        subnet: Ipv4Net,
        /// The host's public address
        public_ip: Ipv4Addr,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Delete a record; a running daemon whose lease it is takes it again
    Release {
        /// Subnet (10.3.7.0/24) or name of the record (10.3.7.0-24)
        subnet: String,
        #[command(flatten)]
        store: StoreArgs,
    },
}

fn subnet(text: &str) -> Result<Ipv4Net, &'static str> {
    text.parse()
        .map_err(|_| "expected a subnet such as 10.3.7.0/24")
}

/// One record, for the table and for JSON.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Row {
    name: String,
    public_ip: Option<Ipv4Addr>,
    vtep_mac: Option<String>,
    node: Option<NodeId>,
    /// Does not expire.
    reserved: bool,
    revision: i64,
    /// Stable name of the reason why peers refuse it.
    rejected: Option<&'static str>,
    /// The reason in words.
    reason: Option<String>,
}

pub(crate) fn run(args: &LeaseArgs) -> ExitCode {
    finish("uvxlan lease", execute(&args.command))
}

async fn execute(command: &LeaseCommand) -> Result<String, CommandError> {
    match command {
        LeaseCommand::List { json, store } => {
            let store = store.open()?;
            let config = config(&*store).await?;
            let rows = rows(&config, store.list().await?);
            if *json {
                return to_json(&rows);
            }
            Ok(table(&rows))
        }
        LeaseCommand::Show {
            subnet,
            json,
            store,
        } => {
            let store = store.open()?;
            let record = find(&*store, subnet).await?;
            let config = config(&*store).await?;
            let value = String::from_utf8_lossy(&record.value).into_owned();
            let rows = rows(&config, store.list().await?);
            let row = rows.into_iter().find(|row| row.name == record.name);
            match row {
                Some(row) if *json => to_json(&row),
                Some(row) => Ok(details(&row, &value)),
                None => Err(CommandError::Other(format!(
                    "{} was deleted while it was being read",
                    excerpt(&record.name)
                ))),
            }
        }
        LeaseCommand::Reserve {
            subnet,
            public_ip,
            store,
        } => {
            let store = store.open()?;
            reserve(&*store, *subnet, *public_ip).await
        }
        LeaseCommand::Release { subnet, store } => {
            let store = store.open()?;
            let record = find(&*store, subnet).await?;
            match store.delete(&record.name, record.revision).await? {
                WriteOutcome::Written { .. } => Ok(format!("released {}\n", excerpt(&record.name))),
                WriteOutcome::Conflict => Err(changed(&record.name)),
            }
        }
    }
}

async fn config(store: &dyn Store) -> Result<NetworkConfig, CommandError> {
    let Some(text) = store.config().await? else {
        return Err(CommandError::NoConfig(store.describe()));
    };
    NetworkConfig::parse(&text, Some("vxlan")).map_err(|source| CommandError::Config {
        place: store.describe(),
        source,
    })
}

async fn find(store: &dyn Store, subnet: &str) -> Result<Record, CommandError> {
    let name = subnet.replace('/', "-");
    let found = store.get(&name).await?;
    found.ok_or_else(|| {
        CommandError::Other(format!(
            "{} has no record {}; 'uvxlan lease list' lists all",
            store.describe(),
            excerpt(&name)
        ))
    })
}

fn changed(name: &str) -> CommandError {
    CommandError::Other(format!(
        "{0} was not changed, because somebody else changed it at the same moment; check it with \
         'uvxlan lease show {0}' and try again",
        excerpt(name)
    ))
}

async fn reserve(
    store: &dyn Store,
    subnet: Ipv4Net,
    public_ip: Ipv4Addr,
) -> Result<String, CommandError> {
    let config = config(store).await?;
    if subnet.trunc() != subnet || !compatible(&config, subnet) {
        return Err(CommandError::Other(format!(
            "{subnet} is not a subnet of this network, which assigns a /{} from {} to {}",
            config.subnet_len, config.subnet_min, config.subnet_max
        )));
    }
    let listing = store.list().await?;
    let known: Vec<_> = listing
        .records
        .iter()
        .filter_map(|record| {
            let key = record.name.parse::<SubnetKey>().ok()?;
            let holder = LeaseAttrs::decode(&record.value).ok();
            let same_host = holder.is_some_and(|attrs| attrs.public_ip == public_ip);
            Some((record, key.v4, same_host))
        })
        .collect();
    // Checked first, because the host may have a second record, which peers refuse.
    let own = known
        .iter()
        .find(|(_, leased, same_host)| *same_host && *leased == subnet);
    if let Some((record, ..)) = own {
        // Keep that host's lease as it is, without an expiry.
        let value = record.value.clone();
        let outcome = store.replace(&record.name, value, record.revision, None);
        return match outcome.await? {
            WriteOutcome::Written { .. } => Ok(reserved(subnet, public_ip)),
            WriteOutcome::Conflict => Err(changed(&record.name)),
        };
    }
    for (record, leased, same_host) in known {
        if leased.contains(&subnet) || subnet.contains(&leased) || same_host {
            let conflict = if same_host {
                "this host already has"
            } else {
                "it overlaps with"
            };
            return Err(CommandError::Other(format!(
                "{subnet} was not reserved: {conflict} {name}; to remove that, run 'uvxlan lease \
                 release {name}'",
                name = record.name
            )));
        }
    }
    let value = format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
    let name = SubnetKey::from(subnet).to_string();
    let value = bytes::Bytes::from(value);
    match store.reserve(&name, value).await? {
        WriteOutcome::Written { .. } => Ok(reserved(subnet, public_ip)),
        WriteOutcome::Conflict => Err(changed(&name)),
    }
}

fn reserved(subnet: Ipv4Net, public_ip: Ipv4Addr) -> String {
    format!("reserved {subnet} for {public_ip}\n")
}

/// All records, ordered by subnet, judged as a host without a lease would.
fn rows(config: &NetworkConfig, listing: Listing) -> Vec<Row> {
    let context = Context {
        network: config.network,
        vni: config.backend.vni,
    };
    let nobody = Ipv4Addr::BROADCAST;
    let mut set = PeerSet::new(nobody.into(), nobody, context).with_subnet_len(config.subnet_len);
    set.resync(listing.clone());
    let refused: BTreeMap<_, _> = set
        .refused()
        .map(|refused| (refused.name.clone(), refused.clone()))
        .collect();
    let mut records = listing.records;
    records.sort_by_key(|record| {
        let key = record.name.parse::<SubnetKey>().ok();
        (key.is_none(), key, record.name.clone())
    });
    let row = |record: Record| {
        let attrs = LeaseAttrs::decode(&record.value).ok();
        let data = attrs.as_ref().and_then(|attrs| attrs.backend_data.as_ref());
        let data = data.and_then(|data| VxlanData::decode(data).ok());
        let refused = refused.get(&record.name);
        // A reservation that its host has never used has no backend data yet.
        let unused = !record.expires && data.is_none();
        let refused =
            refused.filter(|refused| !(unused && refused.reason == Rejection::BackendData));
        Row {
            public_ip: attrs.as_ref().map(|attrs| attrs.public_ip),
            vtep_mac: data.map(|data| data.vtep_mac.to_string()),
            node: attrs.as_ref().and_then(|attrs| attrs.node),
            reserved: !record.expires,
            revision: record.revision,
            rejected: refused.map(|refused| refused.reason.label()),
            reason: refused.map(|refused| match &refused.rival {
                Some(rival) => format!("{} ({rival})", refused.reason.text()),
                None => refused.reason.text().to_owned(),
            }),
            name: record.name,
        }
    };
    records.into_iter().map(row).collect()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<20}{:<17}{:<19}{:<10}STATE\n",
        "SUBNET", "PUBLIC IP", "VTEP MAC", "KIND"
    );
    for row in rows {
        let subnet = match row.name.parse::<SubnetKey>() {
            Ok(key) if key.v6.is_none() => key.v4.to_string(),
            _ => excerpt(&row.name),
        };
        let address = row.public_ip.map_or("-".into(), |ip| ip.to_string());
        let mac = row.vtep_mac.as_deref().unwrap_or("-");
        let kind = if row.reserved { "reserved" } else { "lease" };
        let state = row.rejected.unwrap_or("ok");
        text.push_str(&format!(
            "{subnet:<19} {address:<16} {mac:<18} {kind:<9} {state}\n"
        ));
    }
    text
}

fn details(row: &Row, value: &str) -> String {
    let value: String = value.chars().take(4096).collect();
    let mut text = format!(
        "{}\nvalue:    {}\nrevision: {}\n",
        table(std::slice::from_ref(row)).trim_end(),
        printable(&value),
        row.revision
    );
    if let Some(reason) = &row.reason {
        text.push_str(&format!("refused:  {}\n", printable(reason)));
    }
    text
}

/// Text from the datastore without control characters; quotes stay readable.
fn printable(text: &str) -> String {
    text.escape_debug().to_string().replace("\\\"", "\"")
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, CommandError> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| format!("{text}\n"))
        .map_err(|error| CommandError::Other(format!("cannot write JSON: {error}")))
}
