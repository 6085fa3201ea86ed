//! What common encodings make of a secret value: in base64, hex, URLs, JSON, shells, backwards. Masking
//! of output and the search of files use the same forms. Not here, and so not found: compression,
//! encryption, an encoding of an encoding, a value in parts.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use kage_git::{Secrets, Sought};

use crate::process::Secret;

/// Shorter values, and shorter forms of them, would hit ordinary words.
pub(super) const SHORTEST: usize = 6;

/// The forms of a value.
#[derive(Debug, Default)]
pub(super) struct Forms {
    /// As they are in texts.
    pub(super) texts: Vec<Vec<u8>>,
    /// Those that encoders break into lines or groups.
    pub(super) broken: Vec<Vec<u8>>,
}

/// The forms of a value; none when it is too short.
pub(super) fn forms(secret: &str) -> Forms {
    let secret = secret.trim();
    if secret.len() < SHORTEST {
        return Forms::default();
    }
    let hex = |upper: bool| {
        secret.bytes().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _written = if upper {
                write!(text, "{byte:02X}")
            } else {
                write!(text, "{byte:02x}")
            };
            text
        })
    };
    let mut broken = vec![hex(false).into_bytes(), hex(true).into_bytes()];
    for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
        let engine = GeneralPurpose::new(alphabet, NO_PAD);
        // Within a longer text the value begins at one of three positions of a group of three
        // bytes; the characters that mix it with its neighbours are left out.
        for shift in 0..3 {
            let mut bytes = vec![0; shift];
            bytes.extend_from_slice(secret.as_bytes());
            let text = engine.encode(&bytes);
            let first = (shift * 8).div_ceil(6);
            let last = bytes.len() * 8 / 6;
            broken.push(text.as_bytes()[first..last].to_vec());
        }
    }
    let mut texts = vec![
        secret.as_bytes().to_vec(),
        secret.chars().rev().collect::<String>().into_bytes(),
        url::form_urlencoded::byte_serialize(secret.as_bytes())
            .collect::<String>()
            .into_bytes(),
    ];
    texts.extend(escaped(secret).map(String::into_bytes));
    if let Ok(quoted) = serde_json::to_string(secret) {
        let inner = &quoted[1..quoted.len() - 1];
        texts.push(inner.as_bytes().to_vec());
        texts.push(inner.replace('/', "\\/").into_bytes());
    }
    for forms in [&mut broken, &mut texts] {
        forms.sort_unstable();
        forms.dedup();
        forms.retain(|form| form.len() >= SHORTEST);
    }
    texts.extend(broken.iter().cloned());
    Forms { texts, broken }
}

/// The value as URLs and shells have it.
fn escaped(secret: &str) -> impl Iterator<Item = String> {
    const NO_ESCAPE: &str = "-_.~";
    let each = |escape: fn(char, &mut String)| {
        let mut text = String::new();
        for character in secret.chars() {
            if character.is_ascii_alphanumeric() || NO_ESCAPE.contains(character) {
                text.push(character);
            } else {
                escape(character, &mut text);
            }
        }
        text
    };
    [
        each(|character, text| percent(character, text, false)),
        each(|character, text| percent(character, text, true)),
        // As bash's %q writes it.
        each(|character, text| {
            text.push('\\');
            text.push(character);
        }),
        // In double quotes.
        each(|character, text| {
            if "\"\\$`!".contains(character) {
                text.push('\\');
            }
            text.push(character);
        }),
        // In single quotes.
        secret.replace('\'', "'\\''"),
        secret.replace('\'', "'\"'\"'"),
    ]
    .into_iter()
}

fn percent(character: char, text: &mut String, lower: bool) {
    let mut buffer = [0; 4];
    for byte in character.encode_utf8(&mut buffer).bytes() {
        // Writing to a string cannot fail.
        let _written = if lower {
            write!(text, "%{byte:02x}")
        } else {
            write!(text, "%{byte:02X}")
        };
    }
}

/// What files are searched for.
pub(crate) fn sought(secrets: &[Secret]) -> Secrets {
    let sought: Vec<Sought> = secrets
        .iter()
        .map(|secret| {
            let Forms { mut texts, broken } = forms(&secret.value);
            if !texts.is_empty() {
                texts.extend(of_files(secret.value.trim()));
            }
            Sought {
                name: secret.name.clone(),
                forms: texts,
                broken,
            }
        })
        .collect();
    Secrets::new(&sought)
}

/// Forms that are long and hardly ever printed.
fn of_files(secret: &str) -> [Vec<u8>; 4] {
    let percents = |lower| {
        let mut text = String::new();
        secret
            .chars()
            .for_each(|character| percent(character, &mut text, lower));
        text.into_bytes()
    };
    let wide = |bytes: fn(u16) -> [u8; 2]| secret.encode_utf16().flat_map(bytes).collect();
    [
        percents(false),
        percents(true),
        wide(u16::to_le_bytes),
        wide(u16::to_be_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    const SECRET: &str = "sk-\"a/b+c='42$>?\u{e9}";

    /// Whether a file with this text is found, and under which name.
    fn found(text: impl AsRef<[u8]>) -> bool {
        let secrets = sought(&[Secret::new("KEY", SECRET), Secret::new("SHORT", "abcde")]);
        !secrets.names_in(text.as_ref()).is_empty()
    }

    fn lines(text: &str, width: usize, end: &str) -> String {
        let characters: Vec<char> = text.chars().collect();
        let lines = characters
            .chunks(width)
            .map(|line| line.iter().collect::<String>() + end);
        lines.collect()
    }

    #[test]
    fn every_encoding_of_a_value_is_found_and_its_neighbours_are_not() {
        let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
        let json = serde_json::to_string(SECRET).unwrap();
        let percent: String = SECRET.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut cases = vec![
            ("plain", SECRET.to_owned()),
            ("reversed", SECRET.chars().rev().collect()),
            ("hex", hex.clone()),
            ("upper hex", hex.to_uppercase()),
            ("hex in groups", lines(&hex, 2, " ")),
            ("json", json.clone()),
            ("json with escaped slashes", json.replace('/', "\\/")),
            ("form", "sk-%22a%2Fb%2Bc%3D%2742%24%3E%3F%C3%A9".to_owned()),
            ("lower percents", "sk-%22a%2fb%2bc%3d%2742%24%3e%3f%c3%a9".to_owned()),
            ("all percents", percent.clone()),
            ("all lower percents", percent.to_lowercase()),
            ("single quotes", format!("'{}'", SECRET.replace('\'', "'\\''"))),
            ("double quotes", "\"sk-\\\"a/b+c='42\\$>?\u{e9}\"".to_owned()),
            ("backslashes", "sk-\\\"a\\/b\\+c\\=\\'42\\$\\>\\?\\\u{e9}".to_owned()),
        ];
        for before in ["", "u", "us", "use"] {
            for after in ["", "!", "!!"] {
                let text = format!("{before}{SECRET}{after}");
                cases.push(("base64", STANDARD.encode(&text)));
                cases.push(("URL-safe base64", URL_SAFE.encode(&text)));
                cases.push(("base64 in lines", lines(&STANDARD.encode(&text), 5, "\r\n  ")));
            }
        }
        for (name, text) in cases {
            assert!(found(format!("x = {text};\n")), "{name}: {text}");
        }
        let wide: Vec<u8> = SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(found(wide));
        for text in ["sk-\"a/b+c='42$>?e", "abcde", "", "c2stImEvYitj"] {
            assert!(!found(text), "{text}");
        }
    }

    #[test]
    fn a_value_in_a_large_binary_file_is_found_at_any_border() {
        for at in [0, 65_530, 65_536, 131_071, 200_000] {
            let mut bytes: Vec<u8> = (0..200_000_u32)
                .map(|n| n.to_le_bytes()[n as usize % 2] | 0x80)
                .collect();
            assert!(!found(&bytes));
            bytes.splice(at..at, SECRET.bytes());
            assert!(found(&bytes), "{at}");
        }
    }
}
