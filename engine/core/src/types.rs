//! The units of the log. offset = records, position = bytes in a file, len = bytes, count = items.
//! Ends are exclusive, ranges are half-open.

use std::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name($inner);

        impl $name {
            /// The value zero.
            pub const ZERO: Self = Self(0);

            /// Wraps a plain number.
            #[inline]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The plain number.
            #[inline]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit! {
    /// A record's number in its partition. Kafka's signed 64-bit offset; never negative in a log.
    Offset(i64)
}
unit! {
    /// A byte position in one file. Kafka's indexes limit segment positions to `i32::MAX`.
    Position(u64)
}
unit! {
    /// A number of bytes.
    ByteCount(u64)
}
unit! {
    /// The term of a partition's leader, raised at every unclean start.
    LeaderEpoch(i32)
}
unit! {
    /// Wall-clock milliseconds since the Unix epoch, as records carry them. -1 means "none".
    Timestamp(i64)
}
unit! {
    /// Monotonic nanoseconds since an arbitrary start; comparable only within one process.
    Nanos(u64)
}

impl Offset {
    /// The offset `count` records further on.
    #[inline]
    pub const fn plus(self, count: i64) -> Self {
        Self(self.0 + count)
    }
}

impl Position {
    /// The position `len` bytes further on.
    #[inline]
    pub const fn plus(self, len: ByteCount) -> Self {
        Self(self.0 + len.0)
    }

    /// Bytes from `earlier` up to here.
    ///
    /// # Panics
    /// If `earlier` lies behind this position.
    #[inline]
    pub fn since(self, earlier: Position) -> ByteCount {
        assert!(earlier.0 <= self.0, "{earlier:?} lies behind {self:?}");
        ByteCount(self.0 - earlier.0)
    }

    /// The greatest multiple of `align` (a power of two) that is not beyond this position.
    #[inline]
    pub const fn align_down(self, align: u64) -> Self {
        Self(self.0 & !(align - 1))
    }

    /// The smallest multiple of `align` (a power of two) that is not before this position.
    #[inline]
    pub const fn align_up(self, align: u64) -> Self {
        Self((self.0 + align - 1) & !(align - 1))
    }
}

impl ByteCount {
    /// `count` KiB.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// `count` MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// A length of something in memory.
    #[inline]
    pub const fn of_usize(len: usize) -> Self {
        Self(len as u64)
    }

    /// As an index type.
    ///
    /// # Panics
    /// Never on the 64-bit targets this crate supports.
    #[inline]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl LeaderEpoch {
    /// The epoch after this one; the last one there is has none.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(next) => Some(Self(next)),
            None => None,
        }
    }
}

impl Timestamp {
    /// "No timestamp", as Kafka writes it.
    pub const NONE: Self = Self(-1);
}

impl Nanos {
    /// The instant `millis` milliseconds later; saturates.
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }
}

// Positions and lengths are indexed with `usize` throughout.
const _: () = assert!(usize::BITS == 64);
