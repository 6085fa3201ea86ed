//! Token counts and prompt-cache accounting of the scripted model: deterministic, from bytes,
//! after the providers' documented rules: exact prefix and minimum length by model; for one provider
//! entries at breakpoints only, and a look-up that walks back at most 20 blocks; for others every
//! prefix. It does not know HTTP.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::request::{CacheTtl, Caching, Request};

/// Tokens of one call by billing class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallUsage {
    /// Neither read from nor written to the cache.
    pub input: u64,
    pub cache_write_5m: u64,
    pub cache_write_1h: u64,
    pub cache_read: u64,
    pub output: u64,
    /// Part of `output` that is reasoning.
    pub reasoning: u64,
}

/// Tokens of some bytes: a quarter, rounded up.
pub(crate) fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

/// Counts of the same classes that nobody can compute from request and answer, as those of real providers.
pub(crate) fn drawn(seed: u64, number: u64, from: CallUsage) -> CallUsage {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(number.to_le_bytes())
        .finalize();
    // Small enough that programs do not think that their window is full.
    let draw = |class: usize| 1 + u64::from(u16::from_le_bytes([digest[2 * class], digest[2 * class + 1]]) % 8192);
    let of = |class, count: u64| if count == 0 { 0 } else { draw(class) };
    CallUsage {
        input: draw(0),
        cache_write_5m: of(1, from.cache_write_5m),
        cache_write_1h: of(2, from.cache_write_1h),
        cache_read: of(3, from.cache_read),
        output: draw(4),
        reasoning: 0,
    }
}

/// The tokens of the whole prompt, cached ones included.
pub(crate) fn prompt_tokens(request: &Request) -> u64 {
    request
        .segments
        .iter()
        .map(|segment| tokens(segment.content.len()))
        .sum()
}

/// The tokens of what stays before a summary of the conversation.
pub(crate) fn head_tokens(request: &Request) -> u64 {
    let head = request.segments.iter().take(request.head);
    head.map(|segment| tokens(segment.content.len())).sum()
}

/// The digest of a prefix, with everything that separates caches: organisation and model.
type Prefix = [u8; 32];

#[derive(Debug)]
struct Entry {
    ttl: CacheTtl,
    expires: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct PromptCache {
    entries: HashMap<Prefix, Entry>,
}

/// What a call's prompt costs, and the entries that exist once its response begins.
#[derive(Debug, Default)]
pub(crate) struct Accounting {
    pub(crate) usage: CallUsage,
    /// What it writes, and what it reads, whose lifetime starts again.
    writes: Vec<(Prefix, CacheTtl, Instant)>,
}

const LOOK_BACK: usize = 20;

impl PromptCache {
    /// Accounts for a prompt. What it writes is not readable before `begin`, and without that nothing is used.
    pub(crate) fn look_up(&self, organisation: &str, request: &Request, now: Instant) -> Accounting {
        let prefixes = prefixes(organisation, request);
        let minimum = minimum_tokens(&request.model);
        if let Caching::Implicit { writes } = request.caching {
            return self.implicit(&prefixes, minimum, writes, now);
        }
        let breakpoints: Vec<(usize, CacheTtl)> = request
            .segments
            .iter()
            .enumerate()
            .filter_map(|(index, segment)| Some((index, segment.breakpoint?)))
            .filter(|(index, _)| prefixes[*index].1 >= minimum)
            .collect();
        let hit = breakpoints.iter().rev().find_map(|(breakpoint, _)| {
            let first = breakpoint.saturating_sub(LOOK_BACK - 1);
            (first..=*breakpoint)
                .rev()
                .find(|index| self.alive(&prefixes[*index].0, now).is_some())
        });
        let mut accounting = Accounting::default();
        accounting
            .writes
            .extend(hit.and_then(|index| self.used(&prefixes[index].0, now)));
        let mut covered = hit.map_or(0, |index| prefixes[index].1);
        accounting.usage.cache_read = covered;
        for (index, ttl) in breakpoints {
            if hit.is_some_and(|hit| index <= hit) {
                continue;
            }
            let (prefix, end) = prefixes[index];
            match ttl {
                CacheTtl::FiveMinutes => accounting.usage.cache_write_5m += end - covered,
                CacheTtl::OneHour => accounting.usage.cache_write_1h += end - covered,
            }
            covered = end;
            // The clock runs from the start of the request.
            accounting.writes.push((prefix, ttl, now));
        }
        accounting.usage.input = prompt_tokens(request) - covered;
        accounting
    }

    /// Accounts for a prompt whose every prefix is cached.
    fn implicit(&self, prefixes: &[(Prefix, u64)], minimum: u64, writes: bool, now: Instant) -> Accounting {
        let total = prefixes.last().map_or(0, |(_, tokens)| *tokens);
        // The last segment is always computed: an answer follows from it.
        let cacheable = &prefixes[..prefixes.len().saturating_sub(1)];
        let long: Vec<&(Prefix, u64)> = cacheable.iter().filter(|(_, tokens)| *tokens >= minimum).collect();
        let hit = long.iter().rev().find(|(prefix, _)| self.alive(prefix, now).is_some());
        let mut accounting = Accounting::default();
        accounting.usage.cache_read = hit.map_or(0, |(_, tokens)| *tokens);
        let written = long.last().map_or(0, |(_, tokens)| *tokens) - accounting.usage.cache_read;
        if writes {
            accounting.usage.cache_write_5m = written;
        }
        accounting.usage.input = total - accounting.usage.cache_read - accounting.usage.cache_write_5m;
        let entries = long.iter().map(|(prefix, _)| (*prefix, CacheTtl::OneHour, now));
        accounting.writes = entries.collect();
        accounting
    }

    /// The response begins: what the call wrote can be read from now on, and what it read lives on.
    pub(crate) fn begin(&mut self, accounting: &Accounting) {
        for (prefix, ttl, from) in &accounting.writes {
            let entry = Entry {
                ttl: *ttl,
                expires: *from + lifetime(*ttl),
            };
            self.entries.insert(*prefix, entry);
        }
    }

    /// The lifetime of an entry that is alive.
    fn alive(&self, prefix: &Prefix, now: Instant) -> Option<CacheTtl> {
        let entry = self.entries.get(prefix).filter(|entry| entry.expires > now)?;
        Some(entry.ttl)
    }

    /// An entry whose lifetime starts again.
    fn used(&self, prefix: &Prefix, now: Instant) -> Option<(Prefix, CacheTtl, Instant)> {
        Some((*prefix, self.alive(prefix, now)?, now))
    }
}

fn lifetime(ttl: CacheTtl) -> Duration {
    match ttl {
        CacheTtl::FiveMinutes => Duration::from_secs(5 * 60),
        CacheTtl::OneHour => Duration::from_secs(60 * 60),
    }
}

/// The digest and the token count of every prefix that ends with a segment.
fn prefixes(organisation: &str, request: &Request) -> Vec<(Prefix, u64)> {
    let mut chain: Prefix = Sha256::digest(format!("{organisation}\0{}", request.model)).into();
    let mut count = 0;
    request
        .segments
        .iter()
        .map(|segment| {
            chain = Sha256::new()
                .chain_update(chain)
                .chain_update(segment.content.as_bytes())
                .finalize()
                .into();
            count += tokens(segment.content.len());
            (chain, count)
        })
        .collect()
}

/// The shortest prefix that is cached; shorter ones are silently not.
fn minimum_tokens(model: &str) -> u64 {
    const TABLE: [(&str, u64); 14] = [
        ("claude-opus-4-7", 2048),
        ("claude-opus-4-5", 4096),
        ("claude-opus-4-6", 4096),
        ("claude-haiku-4-5", 4096),
        ("claude-opus-5", 512),
        ("claude-sonnet-5-5", 512),
        ("claude-haiku-5-5", 512),
        ("claude-fable-5", 512),
        ("claude-mythos-5", 512),
        ("claude-opus-4-8", 1024),
        ("claude-sonnet-5", 1024),
        ("claude-sonnet-4", 1024),
        ("gemini-2", 2048),
        ("gemini", 4096),
    ];
    TABLE
        .iter()
        .find(|(prefix, _)| model.starts_with(prefix))
        .map_or(1024, |(_, minimum)| *minimum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Segment;

    fn request(parts: &[(usize, Option<CacheTtl>)]) -> Request {
        Request {
            model: "claude-sonnet-5-5".to_owned(),
            stream: true,
            segments: parts
                .iter()
                .enumerate()
                .map(|(index, (tokens, breakpoint))| Segment {
                    content: format!("{index:04}").repeat(*tokens),
                    breakpoint: *breakpoint,
                })
                .collect(),
            ..Request::default()
        }
    }

    const SHORT: Option<CacheTtl> = Some(CacheTtl::FiveMinutes);
    const LONG: Option<CacheTtl> = Some(CacheTtl::OneHour);

    fn usage(input: u64, write_5m: u64, write_1h: u64, read: u64) -> CallUsage {
        CallUsage {
            input,
            cache_write_5m: write_5m,
            cache_write_1h: write_1h,
            cache_read: read,
            ..CallUsage::default()
        }
    }

    #[test]
    fn a_prefix_is_written_first_and_read_after_the_response_began() {
        let mut cache = PromptCache::default();
        let now = Instant::now();
        let first = request(&[(600, LONG), (100, SHORT), (7, None)]);
        let accounting = cache.look_up("o", &first, now);
        assert_eq!(accounting.usage, usage(7, 100, 600, 0));
        assert_eq!(
            cache.look_up("o", &first, now).usage,
            usage(7, 100, 600, 0),
            "not begun"
        );
        cache.begin(&accounting);
        assert_eq!(cache.look_up("o", &first, now).usage, usage(7, 0, 0, 700));
        assert_eq!(cache.look_up("other", &first, now).usage.cache_read, 0);
        let longer = request(&[(600, LONG), (100, None), (7, None), (50, SHORT)]);
        assert_eq!(
            cache.look_up("o", &longer, now).usage,
            usage(0, 57, 0, 700),
            "walks back"
        );
    }

    #[test]
    fn a_changed_block_loses_everything_after_it() {
        let mut cache = PromptCache::default();
        let now = Instant::now();
        let accounting = cache.look_up("o", &request(&[(600, SHORT), (100, SHORT)]), now);
        cache.begin(&accounting);
        assert_eq!(
            cache.look_up("o", &request(&[(600, SHORT), (101, SHORT)]), now).usage,
            usage(0, 101, 0, 600)
        );
        assert_eq!(
            cache.look_up("o", &request(&[(601, SHORT), (100, SHORT)]), now).usage,
            usage(0, 701, 0, 0)
        );
    }

    #[test]
    fn too_short_a_prefix_is_silently_not_cached() {
        let cache = PromptCache::default();
        let accounting = cache.look_up("o", &request(&[(511, SHORT), (3, None)]), Instant::now());
        assert_eq!(accounting.usage, usage(514, 0, 0, 0));
    }

    #[test]
    fn entries_expire_unless_they_are_used() {
        let mut cache = PromptCache::default();
        let start = Instant::now();
        let call = request(&[(600, SHORT)]);
        let accounting = cache.look_up("o", &call, start);
        cache.begin(&accounting);
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let mut read = |at, answered: bool| {
            let accounting = cache.look_up("o", &call, at);
            if answered {
                cache.begin(&accounting);
            }
            accounting.usage.cache_read
        };
        assert_eq!(read(minutes(4), true), 600);
        assert_eq!(read(minutes(8), true), 600);
        assert_eq!(read(minutes(12), false), 600);
        assert_eq!(read(minutes(14), true), 0, "a refused request uses nothing");
    }

    #[test]
    fn the_look_up_walks_back_twenty_blocks_at_most() {
        let mut cache = PromptCache::default();
        let now = Instant::now();
        let accounting = cache.look_up("o", &request(&[(600, SHORT)]), now);
        cache.begin(&accounting);
        let tail = |blocks: usize| {
            let mut parts = vec![(600, None)];
            parts.extend(vec![(1, None); blocks]);
            parts.last_mut().expect("there is one").1 = SHORT;
            request(&parts)
        };
        assert_eq!(cache.look_up("o", &tail(19), now).usage.cache_read, 600);
        assert_eq!(cache.look_up("o", &tail(20), now).usage.cache_read, 0);
    }

    #[test]
    fn without_breakpoints_every_long_prefix_is_cached() {
        let mut cache = PromptCache::default();
        let now = Instant::now();
        let mut first = request(&[(1100, None), (100, None), (7, None)]);
        first.model = "gpt-6.1-sol".to_owned();
        for (writes, expected) in [(false, usage(1207, 0, 0, 0)), (true, usage(7, 1200, 0, 0))] {
            first.caching = Caching::Implicit { writes };
            assert_eq!(cache.look_up("o", &first, now).usage, expected);
        }
        let accounting = cache.look_up("o", &first, now);
        cache.begin(&accounting);
        let mut longer = request(&[(1100, None), (100, None), (7, None), (50, None), (3, None)]);
        longer.model.clone_from(&first.model);
        longer.caching = first.caching;
        assert_eq!(cache.look_up("o", &longer, now).usage, usage(3, 57, 0, 1200));
        let mut short = request(&[(1000, None), (5, None)]);
        short.model.clone_from(&first.model);
        short.caching = first.caching;
        assert_eq!(cache.look_up("o", &short, now).usage, usage(1005, 0, 0, 0));
    }
}
