//! Packs that are made here, byte by byte.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use proptest::prelude::*;
use sha1::{Digest as _, Sha1};

use super::*;

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn kind_and_size(kind: u8, mut size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut byte = (kind << 4) | u8::try_from(size & 0x0f).unwrap();
    size >>= 4;
    while size > 0 {
        bytes.push(byte | 0x80);
        byte = u8::try_from(size & 0x7f).unwrap();
        size >>= 7;
    }
    bytes.push(byte);
    bytes
}

fn number(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(number & 0x7f).unwrap();
        number >>= 7;
        if number == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

/// A pack of entries that are encoded already.
fn pack(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"PACK\0\0\0\x02".to_vec();
    bytes.extend(u32::try_from(entries.len()).unwrap().to_be_bytes());
    bytes.extend(entries.iter().flatten());
    let digest = Sha1::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

fn whole(kind: u8, content: &[u8]) -> Vec<u8> {
    [kind_and_size(kind, content.len()), zlib(content)].concat()
}

/// A delta by the distance of its base, which copies the base `times`.
fn doubled(distance: usize, base: usize, times: usize) -> Vec<u8> {
    let mut delta = [number(base), number(base * times)].concat();
    for _ in 0..times {
        let (mut at, mut left) = (0, base);
        while left > 0 {
            let size = left.min(0x00ff_ffff);
            // Copy: four bytes of offset, three of size.
            delta.push(0xff);
            delta.extend(u32::try_from(at).unwrap().to_le_bytes());
            delta.extend(&u32::try_from(size).unwrap().to_le_bytes()[..3]);
            (at, left) = (at + size, left - size);
        }
    }
    let mut distance_bytes = vec![u8::try_from(distance & 0x7f).unwrap()];
    let mut rest = distance >> 7;
    while rest > 0 {
        rest -= 1;
        distance_bytes.insert(0, 0x80 | u8::try_from(rest & 0x7f).unwrap());
        rest >>= 7;
    }
    [kind_and_size(6, delta.len()), distance_bytes, zlib(&delta)].concat()
}

/// A blob and deltas each of which is twice its base, up to this size.
pub(crate) fn delta_bomb(most: usize) -> Vec<u8> {
    let mut entries = vec![whole(BLOB, &[b'x'; 1024])];
    let mut size = 1024;
    while size < most {
        let distance = entries.last().unwrap().len();
        entries.push(doubled(distance, size, 2));
        size *= 2;
    }
    pack(&entries)
}

fn limits() -> PackLimits {
    PackLimits {
        packed: 1 << 20,
        objects: 100,
        held: 1 << 16,
        threads: 1,
        blob: 1 << 18,
        total: 1 << 19,
        growth: 0,
    }
}

fn found(pack: &[u8]) -> Result<(), PackProblem> {
    scan(pack, limits()).unwrap()
}

#[test]
fn a_pack_is_taken_up_to_each_limit_and_refused_beyond_it() {
    let blob = |size: usize| whole(BLOB, &vec![0; size]);
    assert_eq!(found(&pack(&[])), Ok(()));
    assert_eq!(found(&pack(&[blob(1 << 18), whole(2, &[1; 1 << 16]), blob(0)])), Ok(()));
    assert_eq!(found(&pack(&vec![blob(1); 100])), Ok(()));
    let many = found(&pack(&vec![blob(1); 101]));
    assert_eq!(
        many,
        Err(PackProblem::Objects {
            objects: 101,
            most: 100
        })
    );
    let large = found(&pack(&[blob((1 << 18) + 1)]));
    assert!(matches!(large, Err(PackProblem::Blob { .. })), "{large:?}");
    let tree = found(&pack(&[whole(2, &[1; (1 << 16) + 1])]));
    assert!(matches!(tree, Err(PackProblem::Held { .. })), "{tree:?}");
    let together = found(&pack(&[blob(1 << 18), blob(1 << 18), blob(1)]));
    assert!(matches!(together, Err(PackProblem::Total { .. })), "{together:?}");
    assert_eq!(found(&delta_bomb(1 << 16)), Ok(()));
    let bomb = delta_bomb(1 << 30);
    assert!(bomb.len() < 4000, "{}", bomb.len());
    let bomb = found(&bomb);
    assert!(matches!(bomb, Err(PackProblem::Held { .. })), "{bomb:?}");
    let noise: Vec<u8> = (0..1_500_000_u64)
        .map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()[0])
        .collect();
    let packed = found(&pack(&[whole(BLOB, &noise)]));
    assert!(packed.is_err(), "{packed:?}");
}

/// A delta by the name of its base, which both have this size.
fn delta_of(size: usize) -> Vec<u8> {
    let delta = [number(size), number(size)].concat();
    [kind_and_size(7, delta.len()), vec![7; 20], zlib(&delta)].concat()
}

#[test]
fn a_history_of_a_large_file_is_taken_as_far_as_memory_goes() {
    let of = |size_mib: usize, limits| scan(pack(&[delta_of(size_mib << 20)]).as_slice(), limits).unwrap();
    let result = PackLimits::of_result(&ResultRules::default());
    let push = PackLimits::of_push();
    // git makes deltas of files up to 512 MiB by itself.
    for (limits, taken, refused) in [(push, 600, 641), (result, 250, 257)] {
        assert_eq!(of(taken, limits), Ok(()));
        let found = of(refused, limits);
        assert!(matches!(found, Err(PackProblem::Held { .. })), "{found:?}");
    }
    for (limits, most) in [(push, 2560 << 20), (result, 512 << 20)] {
        assert!(2 * limits.held * limits.threads <= most, "{limits:?}");
        let threads = ("pack.threads", limits.threads.to_string());
        assert!(
            limits.settings().contains(&threads),
            "git may use no more than was counted"
        );
    }
    for limits in [push, result] {
        let bomb = scan(delta_bomb(1 << 30).as_slice(), limits).unwrap();
        assert!(matches!(bomb, Err(PackProblem::Held { .. })), "{bomb:?}");
    }
}

#[test]
fn what_is_no_pack_is_refused() {
    let good = pack(&[whole(BLOB, b"content"), whole(1, b"tree x")]);
    assert_eq!(found(&good), Ok(()));
    // All objects are there, whatever became of the digest, which is git's matter.
    assert_eq!(found(&good[..good.len() - 20]), Ok(()));
    for end in 0..good.len() - 20 {
        assert!(found(&good[..end]).is_err(), "{end}");
    }
    let lying = pack(&[[kind_and_size(BLOB, 3), zlib(b"more than three")].concat()]);
    assert!(matches!(found(&lying), Err(PackProblem::Damaged(_))));
    let endless = pack(&[vec![0xbf; 40]]);
    assert!(matches!(found(&endless), Err(PackProblem::Damaged(_))));
    for other in [&b"PACK\0\0\0\x04\0\0\0\0"[..], b"pack\0\0\0\x02\0\0\0\0"] {
        assert!(matches!(found(other), Err(PackProblem::Damaged(_))));
    }
}

proptest! {
    #[test]
    fn where_bytes_are_cut_makes_no_difference(
        sizes in prop::collection::vec(0_usize..70_000, 0..6),
        cuts in prop::collection::vec(1_usize..5000, 1..10),
        deltas in any::<bool>(),
    ) {
        let bytes = if deltas {
            delta_bomb(1 << 17)
        } else {
            pack(&sizes.iter().map(|size| whole(BLOB, &vec![7; *size])).collect::<Vec<_>>())
        };
        let expected = found(&bytes);
        let mut scan = PackScan::new(limits());
        let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
        let mut done = Ok(());
        while !rest.is_empty() && done.is_ok() {
            let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            done = scan.push(piece);
            rest = after;
        }
        prop_assert_eq!(&done, &expected);
        prop_assert!(done.is_err() || scan.is_over());
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), whole in any::<bool>()) {
        let bytes = if whole { [b"PACK\0\0\0\x02\0\0\0\x05".to_vec(), bytes].concat() } else { bytes };
        let said = found(&bytes);
        prop_assert!(said.is_ok() || said.is_err());
    }
}
