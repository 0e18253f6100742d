//! Names of records below the store's prefix.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::subnet::key::SubnetKey;

fuzz_target!(|text: &str| {
    let Ok(key) = text.parse::<SubnetKey>() else {
        return;
    };
    // One subnet has one name: what is read is what would be written.
    assert_eq!(key.to_string(), text);
    assert_eq!(key.v4, key.v4.trunc());
    assert!((1..=31).contains(&key.v4.prefix_len()));
    if let Some(v6) = key.v6 {
        assert_eq!(v6, v6.trunc());
        assert!((1..=127).contains(&v6.prefix_len()));
    }
    // The name is a file's in the directory store.
    assert!(!text.contains(['/', '\0', '\n']) && !text.starts_with('.'));

    let v4_only = SubnetKey::from(key.v4);
    assert_eq!(v4_only.to_string().parse(), Ok(v4_only));
    assert_eq!(v4_only == key, key.v6.is_none());
});
