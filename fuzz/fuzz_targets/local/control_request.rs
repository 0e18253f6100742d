//! Lines that somebody writes to the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::control::{Request, VERSION, read_request};

fuzz_target!(|line: &[u8]| {
    match read_request(line) {
        Ok(ask) => {
            let again = serde_json::to_vec(&Request {
                v: VERSION,
                ask: ask.clone(),
            })
            .unwrap();
            assert_eq!(read_request(&again), Ok(ask));
        }
        // What is said back is one line of text.
        Err(text) => assert!(!text.is_empty() && !text.contains('\n')),
    }
});
