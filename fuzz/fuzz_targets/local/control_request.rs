//! Lines that somebody writes to the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::control::{RequestLine, VERSION, read_request};

fuzz_target!(|line: &[u8]| {
    match read_request(line) {
        Ok(request) => {
            let again = serde_json::to_vec(&RequestLine {
                v: VERSION,
                request: request.clone(),
            })
            .unwrap();
            assert_eq!(read_request(&again), Ok(request));
        }
        // What is said back is one line of text.
        Err(text) => assert!(!text.is_empty() && !text.contains('\n')),
    }
});
