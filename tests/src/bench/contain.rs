//! What a box costs: the time that it adds to the start of a program, and to work like that of a build. Inside
//! and outside take turns, so that whatever else the machine does meets both.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kage_agent::contain::{AskedTier, BoxParts, Boxes, ContainSettings, Room};
use kage_agent::process::{Chunk, Command, Control, Environment, Limits, Runner, Stdin};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bench::figure::Figure;
use crate::bench::tree::median_ms;
use crate::root::Root;

/// What a start in T2 may cost more, in milliseconds.
const GOAL: f64 = 15.0;

/// Longer than any run.
const LONGEST: Duration = Duration::from_secs(600);

/// Compiles and links small programs, with the many small files that builds read and write.
const BUILD: &str = r##"
set -e
rm -rf build; mkdir build; cd build
i=0
while [ $i -lt 24 ]; do
    i=$((i+1)); mkdir d$i
    for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "#define V$n $n" > d$i/h$n.h; echo "#include \"h$n.h\"" >> d$i/all.h; done
    printf '#include <stdio.h>\n#include <stdlib.h>\n#include "all.h"\nint f%s(void) { return V1 + V12; }\n' $i > d$i/f.c
    cc -c -o f$i.o d$i/f.c
done
echo 'int f24(void); int main(void) { return f24() - 13; }' > main.c
cc -o main main.c f*.o
./main
find . -name '*.h' | xargs cat | wc -l > lines
rm -rf d*
"##;

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Starts of each kind, of which the median counts.
    pub starts: usize,
    /// Builds of each kind, likewise.
    pub builds: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            starts: 100,
            builds: 15,
        }
    }
}

/// An attempt's folders, and what its programs run in.
struct Place {
    root: Root,
    executable: PathBuf,
}

impl Place {
    fn own(&self) -> PathBuf {
        self.root.path().join("state/worktrees/own")
    }

    fn room(&self, tier: AskedTier) -> anyhow::Result<Arc<Room>> {
        let boxes = Boxes::prove(&BoxParts {
            state: &self.root.path().join("state"),
            own: &[],
            settings: &ContainSettings {
                tier,
                ..ContainSettings::default()
            },
            home: std::env::var_os("HOME").map(PathBuf::from),
            executable: &self.executable,
        });
        let room = boxes.room(vec![self.own()], Vec::new());
        room.with_context(|| format!("there is no box: {}", boxes.proved().short_of))
    }

    /// How long a script takes, from before its start to its end.
    async fn run(&self, room: Option<&Arc<Room>>, script: &str) -> anyhow::Result<Duration> {
        let path = std::env::var("PATH").unwrap_or_default();
        let own = self.own().display().to_string();
        let command = Command {
            program: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: Environment::from_iter([
                ("PATH", path.as_str()),
                ("HOME", own.as_str()),
                ("TMPDIR", own.as_str()),
            ]),
            cwd: self.own(),
            stdin: Stdin::Null,
        };
        let limits = Limits {
            timeout: Some(LONGEST),
            grace: Duration::from_secs(1),
        };
        let runner = Runner::Warden(self.executable.clone()).within(room);
        let (sender, mut chunks) = mpsc::channel::<Chunk>(1);
        let began = Instant::now();
        let running = runner.run(command, limits, Control::stop_only(CancellationToken::new()), sender);
        let reading = async {
            let mut said = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                said.extend_from_slice(&chunk.bytes);
            }
            said
        };
        let (ended, said) = tokio::join!(running, reading);
        let took = began.elapsed();
        ensure!(ended?.status.success(), "{}", String::from_utf8_lossy(&said));
        Ok(took)
    }

    /// The medians of a script inside and outside, in milliseconds.
    async fn compare(&self, room: &Arc<Room>, script: &str, times: usize) -> anyhow::Result<(f64, f64)> {
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        // What is read for the first time counts for neither.
        self.run(Some(room), script).await?;
        for _ in 0..times {
            outside.push(self.run(None, script).await?);
            inside.push(self.run(Some(room), script).await?);
        }
        Ok((median_ms(inside), median_ms(outside)))
    }
}

/// Measures on the file system of temporary files. A tier that this machine does not have is an error.
///
/// # Errors
/// When a box cannot be built, or there is no C compiler.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let place = Place {
        root: Root::new("kage-contain-"),
        executable: std::env::current_exe()?,
    };
    std::fs::create_dir_all(place.own())?;
    let mut figures = Vec::new();
    for (tier, spawn, io) in [
        (AskedTier::T1, "spawn, added by T1", "io in T1"),
        (AskedTier::T2, "spawn, added by T2", "io in T2"),
    ] {
        let room = place.room(tier)?;
        let (inside, outside) = place.compare(&room, "exit 0", size.starts).await?;
        figures.push(Figure::new("contain", spawn, (inside - outside, "ms"), ("goal", GOAL)));
        let (inside, outside) = place.compare(&room, BUILD, size.builds).await?;
        figures.push(Figure::new(
            "contain",
            io,
            (inside, "ms"),
            ("the same outside", outside),
        ));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_does_what_it_says() {
        let place = tempfile::tempdir().unwrap();
        let built = |cc: &str| {
            let shell = std::process::Command::new("/bin/sh")
                .args(["-c", BUILD])
                .current_dir(place.path())
                .env("PATH", cc)
                .output();
            shell.unwrap().status.success()
        };
        assert!(built(&std::env::var("PATH").unwrap()));
        let lines = std::fs::read_to_string(place.path().join("build/lines")).unwrap();
        assert_eq!(lines.trim(), (24 * (12 + 12)).to_string());
        assert!(!built("/nowhere"));
    }
}
