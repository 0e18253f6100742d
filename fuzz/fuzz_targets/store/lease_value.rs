//! Values of leases: what other nodes, or whoever may write to the store, published.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::subnet::lease::{BACKEND_TYPE, LeaseAttrs};
use uvxlan::subnet::validate::{self, Context, PeerRecord, Rejection};
use uvxlan::wire::Vni;

const NAME: &str = "172.20.97.0-24";

fuzz_target!(|value: &[u8]| {
    let context = Context {
        network: "172.20.0.0/16".parse().expect("a prefix"),
        vni: Vni::DEFAULT,
    };
    let verdict = validate::check(NAME, value, &context);
    let attrs = LeaseAttrs::decode(value);
    match &verdict {
        Ok(record) => {
            let attrs = attrs.as_ref().expect("what is believed is a lease");
            assert_eq!(attrs.backend_type, BACKEND_TYPE);
            assert_eq!(attrs.public_ip, record.public_ip);
            let data = attrs
                .backend_data
                .as_ref()
                .expect("what is believed has data");
            for object in [value, data.get().as_bytes()] {
                assert!(object.trim_ascii_start().starts_with(b"{"), "no object");
            }
            is_believable(record, &context);
        }
        Err(Rejection::Key | Rejection::OutsideNetwork | Rejection::Overlap) => {
            panic!("a fault of the key, which is good: {verdict:?}")
        }
        Err(_) => {}
    }
    if let Ok(attrs) = attrs {
        let first = attrs.encode().expect("encodes");
        let again = LeaseAttrs::decode(&first).expect("reads its own text");
        assert_eq!(again.encode().expect("encodes"), first);
        if verdict.is_ok() {
            assert_eq!(validate::check(NAME, &first, &context), verdict);
        }
    }
});

fn is_believable(record: &PeerRecord, context: &Context) {
    assert_eq!(record.subnet.to_string(), "172.20.97.0/24");
    assert!(record.vxlan.vni.is_none_or(|vni| vni == context.vni));
    assert!(record.vxlan.vtep_mac.is_valid_vtep());
    let ip = record.public_ip;
    assert!(!context.network.contains(&ip), "{ip} is in the overlay");
    assert!(
        !(ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_link_local()
            || ip.is_multicast()
            || ip.is_broadcast()),
        "{ip} is no host"
    );
}
