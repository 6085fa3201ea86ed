//! Looks at the disk for [`super::policy`]: what is in the folders on the way to hidden files, which links
//! the root folder has, what is a folder, and where the toolchains are. It decides nothing.

use std::fs;
use std::path::{Path, PathBuf};

use kage_core::contain::Tier;

use super::policy::{Child, Confinement, MASKED, Scene, ways};
use super::toolchains;

/// Where names of machines are looked up. Often a link into `/run`, which a box does not have.
const RESOLVER: &str = "/etc/resolv.conf";

/// What the rules of a box depend on, now. Blocks.
pub(super) fn look(confinement: &Confinement) -> Scene {
    let mut scene = Scene::default();
    let folders = match confinement.tier {
        Tier::T0 | Tier::T1 => {
            let mut folders = ways(&confinement.hidden);
            folders.insert("/dev".into());
            folders
        }
        // Everything else is not mounted.
        Tier::T2 | Tier::T3 => ways(&[]),
    };
    for folder in folders {
        let children = children(&folder);
        scene.children.insert(folder, children);
    }
    if confinement.tier < Tier::T2 {
        return scene;
    }
    for child in scene.children.values().flatten().filter(|child| child.is_link) {
        if let Ok(target) = fs::read_link(&child.path) {
            scene.links.insert(child.path.clone(), target);
        }
    }
    let masked = MASKED.iter().map(PathBuf::from);
    for path in masked.chain(confinement.hidden.iter().cloned()) {
        // A link in the place of a folder leads to a place that has its own rule.
        if let Ok(found) = fs::symlink_metadata(&path).map(|found| found.file_type())
            && !found.is_symlink()
        {
            scene.is_folder.insert(path, found.is_dir());
        }
    }
    scene.tools = toolchains::find(confinement);
    if let Ok(resolver) = fs::canonicalize(RESOLVER) {
        scene.tools.push(resolver);
    }
    scene
}

fn children(folder: &Path) -> Vec<Child> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let children = entries.flatten().filter_map(|entry| {
        Some(Child {
            path: entry.path(),
            is_link: entry.file_type().ok()?.is_symlink(),
        })
    });
    children.collect()
}
