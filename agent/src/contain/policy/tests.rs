use super::*;

fn confinement(tier: Tier) -> Confinement {
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
    Confinement {
        tier,
        network: Network::Open,
        door: None,
        write: paths(&[
            "/home/me/state/worktrees/a",
            "/home/me/state/scratch/a",
            "/tmp/kage-1/a",
        ]),
        read: paths(&["/home/me/state/mirrors/p/r.git/objects"]),
        hidden: paths(&["/home/me/state", "/etc/token", "/tmp/kage-1"]),
        homes: paths(&["/home/me"]),
        path: Vec::new(),
        tools: Vec::new(),
        bubblewrap: None,
    }
}

fn scene() -> Scene {
    let children = [
        ("/", "bin@ dev etc home mnt proc sys tmp usr var work"),
        ("/home", "me you"),
        ("/home/me", ".cargo .ssh link@ state"),
        ("/home/me/state", "mirrors worktrees outbox.db"),
        ("/etc", "passwd token"),
        ("/tmp", "kage-1 other"),
        ("/dev", "null vda nvidia0 kmsg"),
    ];
    let children = children.map(|(folder, names)| {
        let entries = names.split(' ').map(|name| Child {
            path: Path::new(folder).join(name.trim_end_matches('@')),
            is_link: name.ends_with('@'),
        });
        (PathBuf::from(folder), entries.collect())
    });
    Scene {
        children: children.into(),
        links: [("/bin".into(), "usr/bin".into())].into(),
        is_folder: [
            ("/etc/token".into(), false),
            ("/etc/shadow".into(), false),
            ("/home/me/state".into(), true),
            ("/tmp/kage-1".into(), true),
        ]
        .into(),
        tools: [
            "/home/me/.cargo/bin",
            "/usr/local/go",
            "/home",
            "/home/me",
            "/work/sdk",
            "/home/me/state",
        ]
        .map(PathBuf::from)
        .into(),
    }
}

/// What a program can do with a file beneath a path, by the rules.
fn allowed(rules: &[(PathBuf, Allowed)], path: &str) -> Vec<Allowed> {
    let mut all: Vec<_> = rules
        .iter()
        .filter(|(rule, _)| Path::new(path).starts_with(rule))
        .map(|(_, allowed)| *allowed)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn in_t1_everything_is_readable_but_what_is_hidden_and_only_ones_own_is_writable() {
    let rules = rules(&confinement(Tier::T1), &scene());
    for (path, expected) in [
        ("/usr/bin/sh", &[Allowed::Read][..]),
        ("/home/you/file", &[Allowed::Read]),
        ("/home/me/.cargo/bin/cargo", &[Allowed::Read]),
        ("/etc/passwd", &[Allowed::Read]),
        ("/tmp/other", &[Allowed::Read]),
        ("/dev/null", &[Allowed::Device]),
        ("/dev/nvidia0", &[Allowed::Device]),
        ("/dev/shm/x", &[Allowed::Write]),
        ("/home/me/state/worktrees/a/file", &[Allowed::Write]),
        ("/tmp/kage-1/a/file", &[Allowed::Write]),
        ("/home/me/state/mirrors/p/r.git/objects/ab/c", &[Allowed::Read]),
        ("/home/me/state/mirrors/p/r.git/config", &[]),
        ("/home/me/state/mirrors/p/other.git/objects/ab/c", &[]),
        ("/home/me/state/worktrees/b/file", &[]),
        ("/home/me/state/outbox.db", &[]),
        ("/tmp/kage-1/b/file", &[]),
        ("/etc/token", &[]),
        ("/dev/vda", &[]),
        ("/dev/kmsg", &[]),
    ] {
        assert_eq!(allowed(&rules, path), expected, "{path}");
    }
    assert!(
        rules.iter().all(|(path, _)| path != Path::new("/home/me/link")),
        "a link may lead anywhere"
    );
}

#[test]
fn in_t2_homes_and_sockets_are_not_there_and_toolchains_are() {
    let mounts = mounts(&confinement(Tier::T2), &scene());
    for (path, expected) in [
        ("/bin", Some(Mount::Link("usr/bin".into()))),
        ("/usr", Some(Mount::ReadOnly)),
        ("/work", None),
        ("/mnt", None),
        ("/work/sdk", Some(Mount::ReadOnly)),
        // In /usr it is in view.
        ("/usr/local/go", None),
        ("/home", Some(Mount::Empty)),
        ("/home/me", Some(Mount::Empty)),
        ("/home/me/.cargo/bin", Some(Mount::ReadOnly)),
        ("/run", Some(Mount::Empty)),
        ("/tmp", Some(Mount::Empty)),
        ("/var/tmp", Some(Mount::Empty)),
        ("/var", Some(Mount::Empty)),
        ("/var/lib/dpkg", Some(Mount::ReadOnly)),
        ("/var/lib/postgresql", None),
        ("/var/log", None),
        ("/etc/shadow", Some(Mount::Nothing)),
        ("/etc/token", Some(Mount::Nothing)),
        ("/home/me/state", Some(Mount::Empty)),
        ("/home/me/state/worktrees/a", Some(Mount::Writable)),
        ("/home/me/state/mirrors/p/r.git/objects", Some(Mount::ReadOnly)),
        ("/proc", Some(Mount::Processes)),
        ("/dev", Some(Mount::Devices)),
    ] {
        assert_eq!(mounts.get(Path::new(path)).cloned(), expected, "{path}");
    }
    // A mount never hides one that was made before it.
    let order: Vec<_> = mounts.keys().collect();
    for (at, path) in order.iter().enumerate() {
        assert!(order[at + 1..].iter().all(|later| !path.starts_with(later)), "{path:?}");
    }
}

#[test]
fn what_is_hidden_stays_so_in_what_is_lent() {
    let mut lent = confinement(Tier::T2);
    lent.read = ["/home/me/config", "/home/me/config/other", "/home/me/key"]
        .map(PathBuf::from)
        .into();
    lent.write.push("/home/me/.tool".into());
    let files = [
        "/home/me/config/token",
        "/home/me/.tool/token",
        "/home/me/key",
        "/home/me/away",
    ];
    let folder = "/home/me/config/logins";
    lent.hidden.extend(files.into_iter().chain([folder]).map(PathBuf::from));
    let mut scene = scene();
    scene.is_folder.extend(files.map(|path| (PathBuf::from(path), false)));
    scene.is_folder.insert(folder.into(), true);
    let mounted = mounts(&lent, &scene);
    for (path, expected) in [
        ("/home/me/config", Some(Mount::ReadOnly)),
        ("/home/me/config/token", Some(Mount::Nothing)),
        ("/home/me/config/logins", Some(Mount::Empty)),
        ("/home/me/.tool", Some(Mount::Writable)),
        ("/home/me/.tool/token", Some(Mount::Nothing)),
        ("/home/me/key", Some(Mount::Nothing)),
        // Nothing of it is in view.
        ("/home/me/away", None),
        ("/home/me/state", Some(Mount::Empty)),
        ("/home/me/state/worktrees/a", Some(Mount::Writable)),
    ] {
        assert_eq!(mounted.get(Path::new(path)).cloned(), expected, "{path}");
    }

    lent.tier = Tier::T1;
    let entries = ["token", "logins", "manifest"].map(|name| Child {
        path: Path::new("/home/me/config").join(name),
        is_link: false,
    });
    scene.children.insert("/home/me/config".into(), entries.into());
    let rules = rules(&lent, &scene);
    for (path, expected) in [
        ("/home/me/config/manifest", &[Allowed::Read][..]),
        ("/home/me/config/token", &[]),
        ("/home/me/config/logins/x", &[]),
        ("/home/me/config/other/x", &[Allowed::Read]),
        ("/home/me/key", &[]),
    ] {
        assert_eq!(allowed(&rules, path), expected, "{path}");
    }
}

#[test]
fn the_ways_to_what_is_hidden_are_looked_at() {
    let hidden = ["/home/me/state", "/etc/token"].map(PathBuf::from);
    let expected = ["/", "/etc", "/home", "/home/me"].map(PathBuf::from);
    assert_eq!(ways(&hidden), expected.into());
    assert_eq!(ways(&[]), [PathBuf::from("/")].into());
}
