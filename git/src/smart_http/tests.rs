use super::*;

const ONE: &str = "1111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222";
const NONE: &str = "0000000000000000000000000000000000000000";

fn push(command: &str) -> Vec<u8> {
    let line = format!("{command}\0 report-status agent=git/2.47");
    format!("{:04x}{line}0000PACK", line.len() + 4).into_bytes()
}

#[test]
fn only_a_base_named_after_itself_may_be_pushed() {
    let good = push(&format!("{NONE} {ONE} {BASES}{ONE}"));
    assert_eq!(allowed_references(&good).unwrap(), Some(vec![format!("{BASES}{ONE}")]));
    for end in 0..good.len() - 8 {
        assert_eq!(allowed_references(&good[..end]).unwrap(), None, "{end}");
    }
    assert_eq!(allowed_references(b"0000").unwrap(), Some(vec![]));
    for command in [
        format!("{NONE} {ONE} {BASES}{TWO}"),
        format!("{NONE} {ONE} refs/heads/main"),
        format!("{ONE} {NONE} {BASES}{NONE}"),
        format!("{TWO} {ONE} {BASES}{ONE}"),
        format!("{NONE} {0} {BASES}{0}", ONE.replacen('1', ";", 1)),
        format!("{NONE} {0} {BASES}{0}", &ONE[1..]),
        format!("shallow {ONE}"),
        "push-cert".to_owned(),
    ] {
        let refused = allowed_references(&push(&command));
        assert!(matches!(refused, Err(ServeError::Refused { .. })), "{command}");
    }
    for bytes in ["0001", "zzzz", "00-4"] {
        let refused = allowed_references(bytes.as_bytes());
        assert!(matches!(refused, Err(ServeError::Malformed { .. })), "{bytes}");
    }
}

#[tokio::test]
async fn a_push_of_a_delta_bomb_is_refused_and_a_small_one_is_gits_matter() {
    use crate::mirror::pack_scan::tests::delta_bomb;

    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::open_or_init(folder.path().join("m.git")).await.unwrap();
    let pushed = async |pack: Vec<u8>| {
        let zero = "0".repeat(40);
        let command = format!("{zero} {ONE} {BASES}{ONE}\0 report-status object-format=sha1");
        let mut body = format!("{:04x}{command}0000", command.len() + 4).into_bytes();
        body.extend_from_slice(&pack);
        serve(&mirror, Service::ReceivePack, None, false, std::io::Cursor::new(body)).await
    };
    let refused = pushed(delta_bomb(1 << 30)).await;
    let Err(ServeError::Refused { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("held in memory"), "{reason}");
    let small = pushed(delta_bomb(1 << 16)).await;
    // It has no such commit, which git says in its reply.
    let mut reply = small.unwrap();
    let mut said = Vec::new();
    while let Some(bytes) = reply.next().await {
        said.extend_from_slice(&bytes.unwrap());
    }
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("unpack ok") && said.contains("ng "), "{said}");
}
