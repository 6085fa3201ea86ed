//! Images that a model can look at: known by their first bytes, never by their names.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// The largest image that is shown: in base64, with which a third is added, it is below the limits of
/// all providers.
const MAX_IMAGE: usize = 3 << 20;

/// An image, as requests have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    /// Such as `image/png`.
    pub(crate) media_type: String,
    /// In base64.
    pub(crate) data: String,
}

/// The kind of an image that every provider knows; `None` for other content.
pub(super) fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// The image that a file is, if it is not too large.
pub(super) fn image(media_type: &str, bytes: &[u8]) -> Option<Image> {
    (bytes.len() <= MAX_IMAGE).then(|| Image {
        media_type: media_type.to_owned(),
        data: BASE64_STANDARD.encode(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b"\x89PNG\r\n\x1a\nrest"[..], Some("image/png")),
            (b"\xff\xd8\xff\xe0", Some("image/jpeg")),
            (b"GIF89a", Some("image/gif")),
            (b"RIFF1234WEBPVP8 ", Some("image/webp")),
            (b"RIFF1234WAVE", None),
            (b"<svg>", None),
            (b"", None),
        ] {
            assert_eq!(media_type(bytes), expected, "{bytes:?}");
        }
        assert!(image("image/png", &vec![0; MAX_IMAGE]).is_some());
        assert_eq!(image("image/png", &vec![0; MAX_IMAGE + 1]), None);
    }
}
