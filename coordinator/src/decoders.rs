//! What is read of texts that clients bring back or write into headers, with what must hold
//! whatever they are: nothing panics, and what was understood survives being written and read
//! again. The tests below and the fuzz targets in `fuzz/` call these.

use kage_core::id::TaskId;

use crate::services::http::blobs::{Ask, range};
use crate::store::PageToken;
use crate::watch::cursor::Cursor;

/// A cursor of a watch.
pub fn cursor(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let task = TaskId::from_random(1);
    if let Ok(cursor) = Cursor::decode(text, task) {
        assert_eq!(Cursor::decode(&cursor.encode(), task), Ok(cursor));
    }
}

/// The token of the next page.
pub fn page_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<PageToken>() {
        assert_eq!(token.to_string(), text);
    }
}

/// A Range header, of a blob whose size the first bytes say.
pub fn range_header(bytes: &[u8]) {
    let (size, header) = bytes.split_at(bytes.len().min(2));
    let size = size.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
    let Ok(header) = std::str::from_utf8(header) else {
        return;
    };
    match range(header, size) {
        Ask::Everything | Ask::Nothing => {}
        Ask::Part(object_store::GetRange::Bounded(part)) => {
            assert!(
                part.start < part.end && part.end <= size,
                "{header}: {part:?} of {size}"
            );
        }
        Ask::Part(other) => panic!("{header}: {other:?} has no end"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "bytes=[0-9]{0,20}-[0-9]{0,20}", "t[0-9a-f]{0,17}"]
    }

    proptest! {
        #[test]
        fn whatever_a_client_says_is_read_or_refused(bytes: Vec<u8>, header in header(), size: [u8; 2]) {
            cursor(&bytes);
            cursor(header.as_bytes());
            page_token(&bytes);
            page_token(header.as_bytes());
            range_header(&bytes);
            range_header(&[&size, header.as_bytes()].concat());
        }
    }
}
