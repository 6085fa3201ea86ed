//! A look at a pack while its bytes go by, before git sees its end: how many objects it has, and how
//! large each of them becomes. git takes any pack that is well formed, and 70 bytes of nested deltas
//! double what it needs in memory. Sizes are what the pack says of itself; git refuses an object that
//! turns out to have another. It owns the format as far as that takes; git owns everything else.
//!
//! ```text
//! header ─▶ kind and size ─▶ [base of a delta] ─▶ compressed data ─▶ next object ... ─▶ digest
//! ```

use std::io::{self, Read};

use flate2::{Decompress, FlushDecompress, Status};
use kage_core::left_out::in_units;
use kage_core::task::ResultRules;

/// What a pack may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackLimits {
    /// The bytes of the pack itself.
    pub(crate) packed: u64,
    /// How many objects: git needs some hundred bytes of memory for each.
    pub(crate) objects: u64,
    /// The bytes of an object that git has to hold in memory: a tree, a commit, what a delta is made
    /// of and what it makes. Each of git's threads holds two of them at once (measured: 604 MiB with one
    /// thread for versions of a file of 300 MiB).
    pub(crate) held: u64,
    /// In how many threads git makes objects of deltas (`pack.threads`).
    pub(crate) threads: u64,
    /// The bytes of a whole blob, which git streams ([`STREAMED`]).
    pub(crate) blob: u64,
    /// The bytes of all objects together: git hashes each.
    pub(crate) total: u64,
    /// How many further bytes all objects may have for each byte of the pack.
    pub(crate) growth: u64,
}

/// From this size on our gits stream a blob and make no delta of it, so that no pack of ours has an
/// object that must be held and is larger.
pub(crate) const STREAMED: u64 = 64 << 20;

impl PackLimits {
    /// The settings with which git takes a pack of this kind, so that it needs no more memory than that.
    #[must_use]
    pub(crate) fn settings(&self) -> [(&'static str, String); 2] {
        [
            ("core.bigFileThreshold", STREAMED.to_string()),
            ("pack.threads", self.threads.to_string()),
        ]
    }

    /// For what a session changed. A person who lets a result be larger gets more.
    #[must_use]
    pub(crate) fn of_result(rules: &ResultRules) -> Self {
        let bytes = rules.max_new_bytes.max(rules.max_file_bytes);
        let most = (4 << 30_u64).max(bytes.saturating_mul(8));
        Self {
            packed: most,
            objects: 1_000_000_u64.max(rules.max_new_files.saturating_mul(4)),
            // An agent of another version makes deltas of larger files than ours do.
            held: 256 << 20,
            threads: 1,
            blob: most,
            total: most,
            growth: 0,
        }
    }

    /// For a person's repository with all of its history. git makes deltas of files up to 512 MiB, and of
    /// larger ones where a person says so; histories grow to a hundred times their pack. With more threads
    /// the largest file would have to be smaller.
    pub(crate) const fn of_push() -> Self {
        Self {
            packed: 32 << 30,
            objects: 20_000_000,
            held: 640 << 20,
            threads: 2,
            blob: 32 << 30,
            total: 16 << 30,
            growth: 256,
        }
    }
}

/// Why a pack is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PackProblem {
    #[error("it has more than {}", in_units(*.0))]
    Packed(u64),
    #[error("it has {objects} objects, and at most {most} are taken")]
    Objects { objects: u64, most: u64 },
    #[error("it has an object of {} that has to be held in memory, and at most {} are", in_units(*.size), in_units(*.most))]
    Held { size: u64, most: u64 },
    #[error("it has a file of {}, and at most {} are taken", in_units(*.size), in_units(*.most))]
    Blob { size: u64, most: u64 },
    #[error("its objects become more than {} together", in_units(*.most))]
    Total { most: u64 },
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// A pack of which some bytes went by.
pub(crate) struct PackScan {
    limits: PackLimits,
    at: At,
    /// Objects that come after this one.
    left: u32,
    packed: u64,
    total: u64,
    inflater: Decompress,
    inflated: Vec<u8>,
}

/// What comes next.
enum At {
    Header(Vec<u8>),
    Kind(Number),
    /// The distance of a delta's base.
    Distance(Kind),
    /// The rest of the name of a delta's base.
    Name(Kind, usize),
    Data(Data),
    /// The digest, which git checks.
    End,
}

#[derive(Clone, Copy)]
struct Kind {
    kind: u8,
    size: u64,
}

/// A kind and a size, as far as they are known.
#[derive(Default)]
struct Number {
    kind: Option<u8>,
    size: u64,
    shift: u32,
}

struct Data {
    is_delta: bool,
    size: u64,
    given: u64,
    /// The beginning of a delta, which says how large its base is and what it makes.
    start: Vec<u8>,
    measured: bool,
}

const BLOB: u8 = 3;
const BY_DISTANCE: u8 = 6;
const BY_NAME: u8 = 7;
/// Two numbers of 64 bits, seven in each byte.
const DELTA_START: usize = 20;
/// The bytes of an object's name.
const NAME: usize = 20;
/// The bytes of a pack's header.
const HEADER: usize = 12;

impl PackScan {
    pub(crate) fn new(limits: PackLimits) -> Self {
        Self {
            limits,
            at: At::Header(Vec::new()),
            left: 0,
            packed: 0,
            total: 0,
            inflater: Decompress::new(true),
            inflated: vec![0; 32 << 10],
        }
    }

    /// Looks at the next bytes.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), PackProblem> {
        self.packed = self.packed.saturating_add(bytes.len() as u64);
        if self.packed > self.limits.packed {
            return Err(PackProblem::Packed(self.limits.packed));
        }
        while let Some((&first, rest)) = bytes.split_first() {
            match &mut self.at {
                At::Header(header) => {
                    header.push(first);
                    bytes = rest;
                    if header.len() == HEADER {
                        self.left = count(header)?;
                        let (objects, most) = (u64::from(self.left), self.limits.objects);
                        if objects > most {
                            return Err(PackProblem::Objects { objects, most });
                        }
                        self.next();
                    }
                }
                At::Kind(number) => {
                    bytes = rest;
                    if let Some(kind) = number.push(first)? {
                        self.begin(kind)?;
                    }
                }
                At::Distance(kind) => {
                    bytes = rest;
                    if first & 0x80 == 0 {
                        self.at = At::Data(Data::of(*kind));
                    }
                }
                At::Name(kind, left) => {
                    bytes = rest;
                    *left -= 1;
                    if *left == 0 {
                        self.at = At::Data(Data::of(*kind));
                    }
                }
                At::Data(_) => bytes = self.inflate(bytes)?,
                At::End => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether all objects went by.
    pub(crate) const fn is_over(&self) -> bool {
        matches!(self.at, At::End)
    }

    fn next(&mut self) {
        self.at = match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                At::Kind(Number::default())
            }
            None => At::End,
        };
    }

    fn begin(&mut self, kind: Kind) -> Result<(), PackProblem> {
        self.at = match kind.kind {
            BY_DISTANCE => At::Distance(kind),
            BY_NAME => At::Name(kind, NAME),
            1..=4 => At::Data(Data::of(kind)),
            _ => return Err(PackProblem::Damaged("an object of no known kind")),
        };
        if kind.kind == BLOB {
            let (size, most) = (kind.size, self.limits.blob);
            if size > most {
                return Err(PackProblem::Blob { size, most });
            }
        } else {
            self.hold(kind.size)?;
        }
        // Of a delta it is less than what it makes, which is counted later.
        self.count(kind.size)
    }

    fn hold(&self, size: u64) -> Result<(), PackProblem> {
        let most = self.limits.held;
        if size > most {
            return Err(PackProblem::Held { size, most });
        }
        Ok(())
    }

    fn count(&mut self, size: u64) -> Result<(), PackProblem> {
        self.total = self.total.saturating_add(size);
        let grown = self.packed.saturating_mul(self.limits.growth);
        let most = self.limits.total.saturating_add(grown);
        if self.total > most {
            return Err(PackProblem::Total { most });
        }
        Ok(())
    }

    /// Inflates some bytes of an object, and returns those after it.
    fn inflate<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], PackProblem> {
        let damaged = || PackProblem::Damaged("an object cannot be decompressed");
        let (read, made) = (self.inflater.total_in(), self.inflater.total_out());
        let status = self
            .inflater
            .decompress(bytes, &mut self.inflated, FlushDecompress::None)
            .map_err(|_| damaged())?;
        let read = usize::try_from(self.inflater.total_in() - read).map_err(|_| damaged())?;
        let made = self.inflater.total_out() - made;
        let At::Data(data) = &mut self.at else {
            return Ok(bytes);
        };
        data.given += made;
        if data.given > data.size {
            return Err(PackProblem::Damaged("an object is larger than it says"));
        }
        let ended = matches!(status, Status::StreamEnd);
        if !ended && read == 0 && made == 0 {
            return Err(damaged());
        }
        let mut sizes = None;
        if data.is_delta && !data.measured {
            let made = usize::try_from(made).unwrap_or(0);
            let room = DELTA_START - data.start.len();
            data.start.extend_from_slice(&self.inflated[..made.min(room)]);
            if ended || data.start.len() == DELTA_START {
                data.measured = true;
                sizes = Some(delta_sizes(&data.start)?);
            }
        }
        if let Some((base, result)) = sizes {
            self.hold(base)?;
            self.hold(result)?;
            self.count(result)?;
        }
        if ended {
            self.inflater.reset(true);
            self.next();
        }
        Ok(bytes.get(read..).unwrap_or_default())
    }
}

impl Data {
    const fn of(kind: Kind) -> Self {
        Self {
            is_delta: matches!(kind.kind, BY_DISTANCE | BY_NAME),
            size: kind.size,
            given: 0,
            start: Vec::new(),
            measured: false,
        }
    }
}

impl Number {
    /// Adds a byte. The number once it is whole.
    fn push(&mut self, byte: u8) -> Result<Option<Kind>, PackProblem> {
        let bits = match self.kind {
            None => {
                self.kind = Some((byte >> 4) & 7);
                (byte & 0x0f, 4)
            }
            Some(_) => (byte & 0x7f, 7),
        };
        add_bits(&mut self.size, &mut self.shift, bits)?;
        Ok((byte & 0x80 == 0).then_some(Kind {
            kind: self.kind.unwrap_or(0),
            size: self.size,
        }))
    }
}

fn add_bits(number: &mut u64, shift: &mut u32, (bits, count): (u8, u32)) -> Result<(), PackProblem> {
    let shifted = u64::from(bits)
        .checked_shl(*shift)
        .filter(|shifted| shifted >> *shift == u64::from(bits));
    *number |= shifted.ok_or(PackProblem::Damaged("a size that is no number"))?;
    *shift += count;
    Ok(())
}

/// How many objects follow the header.
fn count(header: &[u8]) -> Result<u32, PackProblem> {
    match header {
        [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, a, b, c, d] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(PackProblem::Damaged("it does not begin as a pack does")),
    }
}

/// The sizes of a delta's base and of what it makes.
fn delta_sizes(start: &[u8]) -> Result<(u64, u64), PackProblem> {
    let mut bytes = start.iter();
    let mut number = || {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = *bytes.next().ok_or(PackProblem::Damaged("a delta without sizes"))?;
            add_bits(&mut number, &mut shift, (byte & 0x7f, 7))?;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
    };
    Ok((number()?, number()?))
}

/// Looks at a whole pack.
pub(crate) fn scan(mut pack: impl Read, limits: PackLimits) -> io::Result<Result<(), PackProblem>> {
    let mut scan = PackScan::new(limits);
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = match pack.read(&mut piece) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            return Ok(match scan.is_over() {
                true => Ok(()),
                false => Err(PackProblem::Damaged("it ends in the middle")),
            });
        }
        if let Err(problem) = scan.push(piece.get(..read).unwrap_or_default()) {
            return Ok(Err(problem));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
