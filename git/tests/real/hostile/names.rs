//! Misleading names: options in place of a reference or an address, and references that no file
//! system can hold.

use kage_git::{Auth, Expected, Mirror};

use super::{Field, PLAIN};
use crate::sandbox::{fingerprint, url};

/// Words that plain git would take for the option that names a program.
const OPTIONS: &[&str] = &[
    "--upload-pack={stop}",
    "-u{stop}",
    "--exec={stop}",
    "--receive-pack={stop}",
];

#[tokio::test]
async fn an_option_in_place_of_a_name_is_a_name() {
    let field = Field::new();
    for (number, option) in OPTIONS.iter().enumerate() {
        let ground = field.ground(&number.to_string());
        let option = ground.fill(option);
        let mirror = Mirror::open_or_init(ground.folder.join("m.git")).await.unwrap();
        let spec = "refs/heads/main:refs/kage/bases/main";
        let address = url(&ground.repo());
        for (address, spec) in [
            (option.as_str(), spec),
            (&address, &option),
            (&address, &format!("{option}:x")),
        ] {
            let fetched = mirror.fetch(address, &Auth::None, &[spec]).await;
            assert!(fetched.is_err(), "{address} {spec}: {fetched:?}");
        }
        assert_eq!(mirror.resolve(&option).await.unwrap(), None);
        let head = field.sandbox.head(&ground.repo());
        let updated = mirror.update_ref(&option, &head, &Expected::Anything).await;
        assert!(updated.is_err(), "{option}: {updated:?}");
        assert!(!ground.has_sprung(), "{option}: it ran");
        ground.walk(&[
            &["ls-remote", &option, "{repo}"],
            &["push", &option, "{repo}", "HEAD:refs/heads/x"],
            &["clone", "-q", "--no-local", &option, "{repo}", "{folder}/c"],
        ]);
        assert!(ground.has_sprung(), "{option}: plain git did not walk into it");
    }
}

#[tokio::test]
async fn a_branch_whose_name_is_an_option_is_a_branch() {
    let field = Field::new();
    for (number, option) in OPTIONS.iter().enumerate() {
        let (control, ours) = (
            field.ground(&format!("{number}-control")),
            field.ground(&format!("{number}-ours")),
        );
        for ground in [&control, &ours] {
            let name = format!("refs/heads/{}", ground.fill(option));
            field.sandbox.git(&ground.repo(), &["update-ref", &name, "HEAD"]);
            field.sandbox.git(&ground.repo(), &["symbolic-ref", "HEAD", &name]);
        }
        let script = "b=$(git symbolic-ref HEAD | cut -c12-); git ls-remote \"$b\" {repo}; git push \"$b\" {repo} HEAD:refs/x; git clone -q --no-local \"$b\" {repo} {folder}/c";
        let said = control.walk(&[&["sh", "-c", script]]);
        assert!(control.has_sprung(), "{option}: plain git did not walk into it: {said}");
        ours.session(&PLAIN).await.unwrap();
        assert!(!ours.has_sprung(), "{option}: it ran");
        let branch = format!("refs/heads/{}", ours.fill(option));
        let subject = field.sandbox.git(&ours.repo(), &["log", "-1", "--format=%s", &branch]);
        assert_eq!(subject, "Change it", "{option}: the commit is on that branch");
    }
}

/// A reference's name is sent as one line among others; a name must not become two lines.
#[tokio::test]
async fn an_odd_or_huge_reference_is_refused_and_changes_nothing() {
    let field = Field::new();
    let ground = field.ground("names");
    let (mirror, head) = field.sandbox.mirror("m.git", &ground.repo()).await;
    let refs = || {
        (
            fingerprint(&mirror.path().join("refs")),
            mirror.path().join("packed-refs").exists(),
        )
    };
    let before = refs();
    let victim = format!("refs/kage/bases/{head}");
    let zeros = "0".repeat(40);
    let names = [
        String::new(),
        "refs/kage/".to_owned() + &"x".repeat(300),
        "refs/".to_owned() + &"x/".repeat(3000) + "y",
        format!("refs/kage/x\0{head}\0\0delete {victim}\0{head}\0update refs/kage/y"),
        format!("refs/kage/x\ndelete {victim} {head}"),
        format!("refs/kage/x {zeros}"),
        "refs/kage/../../../outside".to_owned(),
        "refs/kage/x.lock".to_owned(),
        "refs/kage/.x".to_owned(),
        "refs/kage/a..b".to_owned(),
        "refs/kage/x\u{7f}".to_owned(),
        "HEAD".to_owned(),
        "config".to_owned(),
        "objects/pack".to_owned(),
        "../outside".to_owned(),
        "/tmp/outside".to_owned(),
    ];
    for name in &names {
        for expected in [Expected::Anything, Expected::Absent, Expected::At(head.clone())] {
            let updated = mirror.update_ref(name, &head, &expected).await;
            assert!(updated.is_err(), "{name:?} {expected:?}");
            assert_eq!(refs(), before, "{name:?} {expected:?}");
        }
    }
    assert_eq!(mirror.resolve(&victim).await.unwrap(), Some(head.clone()));
    // The control: written as one line of plain git's commands, such a name does delete.
    let injected = format!("update refs/kage/x\0{head}\0\0delete {victim}\0{head}\0");
    field
        .sandbox
        .git_with_input(mirror.path(), &["update-ref", "--stdin", "-z"], injected.as_bytes());
    assert_eq!(mirror.resolve(&victim).await.unwrap(), None);
}
