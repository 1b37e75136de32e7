//! The bill of an engine: what it takes from its host, and what of that the host does not have.
//!
//! Adds up what the parts of an engine say they take (`rohrpost_engine_core::bill`). Takes nothing itself, and knows of the
//! host only what it is told.

use std::fmt;

use rohrpost_engine_core::bill::table_len;
pub use rohrpost_engine_core::bill::{ARENA, Due, Item, Memory};
use rohrpost_engine_core::ops::{Event, Ops};
use rohrpost_engine_core::shard::Shard;
use rohrpost_engine_core::types::ByteCount;
use rohrpost_engine_linux::file::open_files_max;
use rohrpost_engine_linux::helper::LinuxPlatform;
use rohrpost_engine_linux::inbox::Inbox;
use rohrpost_engine_linux::poll::{PollConfig, PollPlatform};
use rohrpost_engine_linux::probe::{ByteLen, HostFacts};
use rohrpost_engine_linux::uring::{self, UringPlatform};

use crate::options::{DriverChoice, EngineOptions};
use crate::runtime::OPS_CAPACITY;

/// Addresses that a thread's stack may use; a few pages of them are.
const STACK_LEN: usize = 2 << 20;

/// Helper threads beside those for steps: one makes slabs, one replaces pages.
const HELPERS_BESIDE: usize = 2;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    /// How many shards there are.
    pub shards: u64,
    /// What each of them takes.
    pub shard: Vec<Item>,
    /// What there is once.
    pub engine: Vec<Item>,
    connections_max: u32,
    open_files_max: u32,
}

/// Sums of a bill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Memory, bytes.
    pub len: u64,
    /// The part of it that must be locked memory.
    pub locked_len: u64,
    /// The part of it that is locked as far as that is allowed.
    pub lockable_len: u64,
    /// Descriptors.
    pub descriptors: u64,
}

impl EngineOptions {
    /// What an engine with these options takes; with `Auto` on a host that has io_uring. The memory of a service, the
    /// indexes of its partitions (two of `index_len_max` for each that is appended to, touched as they fill) and
    /// what sockets hold in the kernel come on top.
    pub fn bill(&self) -> Bill {
        let count = self.cores.len() as u16;
        let mut shard = match self.driver {
            DriverChoice::Auto | DriverChoice::Uring => uring::bill(&self.limits),
            DriverChoice::Poll => PollConfig::new(&self.limits).bill(&self.limits),
        };
        shard.extend(match self.driver {
            DriverChoice::Auto | DriverChoice::Uring => self.items::<UringPlatform>(count),
            DriverChoice::Poll => self.items::<PollPlatform>(count),
        });
        if self.driver == DriverChoice::Poll {
            shard.iter_mut().filter(|item| item.memory == Memory::PagesLockedIfAllowed).for_each(|item| {
                item.memory = Memory::Pages;
            });
        }
        let stacks = (self.helper_threads.max(1) + HELPERS_BESIDE) * STACK_LEN;
        let engine = vec![
            Item::at_start("lock of the log directory", 0).with_descriptors(u64::from(!self.read_only)),
            Item::in_use("stacks of the helper threads", stacks).of(Memory::Pages),
        ];
        let limits = &self.limits;
        let (connections_max, open_files_max) = (limits.connections_max, limits.open_files_max);
        Bill { shards: self.cores.len() as u64, shard, engine, connections_max, open_files_max }
    }

    fn items<P: LinuxPlatform>(&self, count: u16) -> Vec<Item> {
        let turn = Ops::<P>::memory_len(OPS_CAPACITY) + table_len::<Event<P>>(OPS_CAPACITY);
        let mut items = Shard::<P, ()>::bill(&self.limits, count);
        items.extend([
            Item::at_start("operations and events of a turn", turn),
            Item::in_use("requests of handles that wait", Inbox::<P>::memory_len(self.requests_max)),
            Item::in_use("stack of the shard's thread", STACK_LEN).of(Memory::Pages),
        ]);
        if self.listen.is_some() {
            items.push(Item::at_start("listener", 0).with_descriptors(1));
        }
        items
    }
}

impl Bill {
    /// What is taken at the start.
    pub fn at_start(&self) -> Sum {
        self.sum(|item| item.due == Due::Start)
    }

    /// The most that is taken at any time.
    pub fn in_use(&self) -> Sum {
        self.sum(|_| true)
    }

    fn sum(&self, counts: impl Fn(&Item) -> bool) -> Sum {
        let each = self.shard.iter().map(|item| (item, self.shards));
        let all = each.chain(self.engine.iter().map(|item| (item, 1)));
        all.filter(|(item, _)| counts(item)).fold(Sum::default(), |sum, (item, times)| {
            let len = item.len.get().saturating_mul(times);
            let of = |memory| if item.memory == memory { len } else { 0 };
            Sum {
                len: sum.len.saturating_add(len),
                locked_len: sum.locked_len + of(Memory::Locked),
                lockable_len: sum.lockable_len + of(Memory::PagesLockedIfAllowed),
                descriptors: sum.descriptors + item.descriptors * times,
            }
        })
    }

    /// What of this bill a host does not have: what follows from it, and what helps; a sentence each.
    pub fn misfits(&self, host: &HostFacts) -> Vec<String> {
        let (start, most) = (self.at_start(), self.in_use());
        let mut misfits = Vec::new();
        let (needed, there) = (start.len + self.arena_len(), host.memory_limit().get());
        if needed > there {
            misfits.push(format!(
                "the arena and what is taken at the start are {}, and there are {}: lower arena_len_max, or give the \
                 machine or its control group more memory",
                ByteLen(Some(needed)),
                ByteLen(Some(there))
            ));
        }
        misfits.extend(self.locking_misfit(host, &most));
        misfits.extend(self.descriptor_misfit(host, start.descriptors, most.descriptors));
        misfits
    }

    fn arena_len(&self) -> u64 {
        let arena = self.shard.iter().find(|item| item.what == ARENA);
        arena.map_or(0, |arena| arena.len.get()) * self.shards
    }

    fn locking_misfit(&self, host: &HostFacts, most: &Sum) -> Option<String> {
        let allowed = host.memlock.soft.filter(|_| !host.ipc_lock)?;
        if most.locked_len > allowed {
            return Some(format!(
                "the rings need {} of locked memory, and {} are allowed: raise memlock (ulimit -l, LimitMEMLOCK=), \
                 grant CAP_IPC_LOCK, lower connections_max, or use the poll driver, as Auto does",
                ByteLen(Some(most.locked_len)),
                ByteLen(Some(allowed))
            ));
        }
        let left = allowed - most.locked_len;
        (most.lockable_len > left).then(|| {
            format!(
                "of {} of arena {} at most can be locked, the rest is used unregistered, which costs CPU: raise \
                 memlock (ulimit -l, LimitMEMLOCK=), or grant CAP_IPC_LOCK",
                ByteLen(Some(most.lockable_len)),
                ByteLen(Some(left))
            )
        })
    }

    fn descriptor_misfit(&self, host: &HostFacts, start: u64, most: u64) -> Option<String> {
        let allowed = host.nofile.soft?;
        if start > allowed {
            return Some(format!(
                "an engine opens {start} files at its start, and {allowed} are allowed: raise the limit (ulimit -n)"
            ));
        }
        let kept = open_files_max(self.shards as usize, self.connections_max).min(self.open_files_max);
        (most > allowed).then(|| {
            format!(
                "connections_max and open_files_max want up to {most} open files, and {allowed} are allowed: beyond {kept} \
                 a shard closes segments that nobody uses, and opens them again; raise the limit (ulimit -n)"
            )
        })
    }
}

impl fmt::Display for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, item: &Item| {
            let len = if item.len == ByteCount::ZERO {
                String::new()
            } else {
                ByteLen(Some(item.len.get())).to_string()
            };
            let (start, most) =
                if item.due == Due::Start { (len, String::new()) } else { (String::new(), len) };
            let files = if item.descriptors == 0 { String::new() } else { item.descriptors.to_string() };
            let locked = match item.memory {
                Memory::Locked => "  locked",
                Memory::PagesLockedIfAllowed => "  locked as far as allowed",
                Memory::Kernel => "  the kernel's",
                Memory::Heap | Memory::Pages => "",
            };
            writeln!(f, "  {:<42} {start:>9} {most:>9} {files:>7}{locked}", item.what)
        };
        writeln!(f, "  {:<42} {:>9} {:>9} {:>7}", "each shard", "at start", "in use", "files")?;
        self.shard.iter().try_for_each(|item| line(f, item))?;
        writeln!(f, "  the engine")?;
        self.engine.iter().try_for_each(|item| line(f, item))?;
        let (start, most) = (self.at_start(), self.in_use());
        let text = |len| ByteLen(Some(len)).to_string();
        let shards = format!("{} shard(s) and the engine", self.shards);
        let files = format!("{}-{}", start.descriptors, most.descriptors);
        writeln!(f, "  {shards:<42} {:>9} {:>9} {files}", text(start.len), text(most.len))
    }
}
