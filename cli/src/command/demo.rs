//! `kage demo`: makes the folder that the demo works in, and removes it afterwards.

use crate::args::Demo;
use crate::demo;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::output::note;

pub(super) async fn run(invocation: &Invocation, args: &Demo) -> anyhow::Result<Exit> {
    let root = tempfile::Builder::new().prefix("kage-demo-").tempdir()?;
    let exit = Box::pin(demo::show(invocation, root.path())).await;
    if args.keep || exit.is_err() {
        note(&format!("everything is kept in {}", root.keep().display()));
    }
    exit
}
