use std::io::Write as _;

use super::*;
use crate::mirror::pack_scan::tests::delta_bomb;

async fn added(pack: &[u8]) -> Result<(), GitError> {
    let folder = tempfile::tempdir().unwrap();
    let mirror = Mirror::open_or_init(folder.path().join("m.git")).await.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(pack).unwrap();
    let incoming = mirror.incoming().unwrap();
    incoming.add(file).await
}

#[tokio::test]
async fn a_delta_that_becomes_larger_than_memory_is_refused_before_git_sees_it() {
    // git itself takes a small one, so the large one is well formed.
    added(&delta_bomb(1 << 16)).await.unwrap();
    let bomb = delta_bomb(1 << 30);
    assert!(bomb.len() < 4000, "{}", bomb.len());
    let refused = added(&bomb).await;
    let Err(error @ GitError::PackRefused { .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(error.to_string().contains("held in memory"), "{error}");
    assert!(!error.is_transient() && !error.suggests_damage(Path::new("/")));
}
