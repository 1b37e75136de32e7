//! The kernel features the ring driver can use, each with a name, the kernel that brought it, and what
//! is lost without it.
//!
//! Owns the list; probing lives in [`super::probe()`]. Always holds: the driver is correct with any one
//! of them, and with all of them, off. A [`FeatureMask`] switches features off by name, so that the
//! behaviour on an older kernel can be tested on a newer one.

use std::fmt;
use std::str::FromStr;

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::fetch::{Mode, ModeSet};
use rohrpost_engine_core::platform::Platform;

use super::UringPlatform;

/// A kernel feature the ring driver uses where it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Feature {
    /// Only the creating thread submits (`IORING_SETUP_SINGLE_ISSUER`).
    SingleIssuer,
    /// Completions are worked off inside `io_uring_enter` only (`IORING_SETUP_DEFER_TASKRUN`).
    DeferTaskrun,
    /// No interrupt for completions of the running thread (`IORING_SETUP_COOP_TASKRUN`).
    CoopTaskrun,
    /// Submission without an index array (`IORING_SETUP_NO_SQARRAY`).
    NoSqarray,
    /// A wait with a time limit in the same call (`IORING_FEAT_EXT_ARG`).
    ExtArg,
    /// Waiting is not accounted as disk wait (`IORING_ENTER_NO_IOWAIT`).
    NoIowait,
    /// A cap on kernel worker threads (`IORING_REGISTER_IOWQ_MAX_WORKERS`).
    IowqMaxWorkers,
    /// Arena slabs registered as fixed buffers (`READ_FIXED`, `WRITE_FIXED`).
    FixedBuffers,
    /// Vectored writes from fixed buffers (`WRITEV_FIXED`).
    WritevFixed,
    /// Receive buffers picked by the kernel (`IORING_REGISTER_PBUF_RING`).
    BufRing,
    /// One request receives many times (`IORING_RECV_MULTISHOT`).
    MultishotRecv,
    /// One request accepts many times (`IORING_ACCEPT_MULTISHOT`).
    MultishotAccept,
    /// One request reports many wake-ups (`IORING_POLL_ADD_MULTI`).
    MultishotPoll,
    /// Files into pipes, on a kernel worker (`IORING_OP_SPLICE`).
    Splice,
    /// Sends that read memory in place (`IORING_OP_SENDMSG_ZC`).
    SendmsgZc,
    /// Such sends say whether the kernel copied all the same (`IORING_SEND_ZC_REPORT_USAGE`).
    ZcReport,
    /// A pipe that arena memory goes through by reference into sockets (`vmsplice`, `splice`).
    ReferencePipe,
}

/// What a feature is called, since when it exists, and what its absence costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureInfo {
    /// Name on command lines and in reports.
    pub name: &'static str,
    /// First kernel with it.
    pub since: &'static str,
    /// What the driver does without it, and what that costs.
    pub without: &'static str,
}

impl Feature {
    /// Every feature, in the order of the documentation.
    pub const ALL: &'static [Feature] = &[
        Feature::SingleIssuer,
        Feature::DeferTaskrun,
        Feature::CoopTaskrun,
        Feature::NoSqarray,
        Feature::ExtArg,
        Feature::NoIowait,
        Feature::IowqMaxWorkers,
        Feature::FixedBuffers,
        Feature::WritevFixed,
        Feature::BufRing,
        Feature::MultishotRecv,
        Feature::MultishotAccept,
        Feature::MultishotPoll,
        Feature::Splice,
        Feature::SendmsgZc,
        Feature::ZcReport,
        Feature::ReferencePipe,
    ];

    /// Name, first kernel, and fallback.
    pub const fn info(self) -> FeatureInfo {
        let (name, since, without) = match self {
            Feature::SingleIssuer => ("single_issuer", "6.0", "the kernel locks the ring on every call"),
            Feature::DeferTaskrun => {
                ("defer_taskrun", "6.1", "completions interrupt the shard between its calls")
            }
            Feature::CoopTaskrun => {
                ("coop_taskrun", "5.19", "completions send an interrupt to the shard's core")
            }
            Feature::NoSqarray => ("no_sqarray", "6.6", "one more memory access per submission"),
            Feature::ExtArg => ("ext_arg", "5.11", "one timeout request per wait with a deadline"),
            Feature::NoIowait => {
                ("no_iowait", "6.15", "an idle shard shows up as disk wait in the host's statistics")
            }
            Feature::IowqMaxWorkers => {
                ("iowq_max_workers", "5.15", "kernel workers are limited by the process limit only")
            }
            Feature::FixedBuffers => {
                ("fixed_buffers", "5.13", "the kernel pins and unpins pages on every transfer")
            }
            Feature::WritevFixed => {
                ("writev_fixed", "6.15", "commits of several pieces pin their pages on every write")
            }
            Feature::BufRing => ("buf_ring", "5.19", "a receive costs a poll request and a recv call"),
            Feature::MultishotRecv => ("multishot_recv", "6.0", "one more submission per receive"),
            Feature::MultishotAccept => ("multishot_accept", "5.19", "one more submission per connection"),
            Feature::MultishotPoll => {
                ("multishot_poll", "5.13", "one more submission per wake-up from another thread")
            }
            Feature::Splice => (
                "splice",
                "5.7",
                "the modes splice and direct_splice become direct_send, counted as refused pipes",
            ),
            Feature::SendmsgZc => ("sendmsg_zc", "6.1", "the modes send_zc and direct_send_zc copy"),
            Feature::ZcReport => (
                "zc_report",
                "6.2",
                "nobody says when send_zc copies all the same, so it is used only when forced",
            ),
            Feature::ReferencePipe => {
                ("reference_pipe", "2.6.17", "long ranges for several readers are copied into every socket")
            }
        };
        FeatureInfo { name, since, without }
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

/// The text names no feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown feature {name:?}; known features: {}", known())]
pub struct UnknownFeature {
    /// What was given.
    pub name: String,
}

fn known() -> String {
    let names: Vec<&str> = Feature::ALL.iter().map(|feature| feature.info().name).collect();
    names.join(", ")
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Feature::ALL.iter().find(|feature| feature.info().name == text);
        found.copied().ok_or_else(|| UnknownFeature { name: text.to_owned() })
    }
}

/// A set of features.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FeatureSet(u32);

impl FeatureSet {
    /// The transfer modes that a ring with these features executes.
    pub(super) fn modes(self) -> ModeSet {
        let needs: [(Feature, &[Mode]); 3] = [
            (Feature::Splice, &[Mode::Splice, Mode::DirectSplice]),
            (Feature::SendmsgZc, &[Mode::SendZc, Mode::DirectSendZc]),
            (Feature::ReferencePipe, &[Mode::SendRef]),
        ];
        let lacking = needs.iter().filter(|(feature, _)| !self.has(*feature));
        lacking.fold(UringPlatform::MODES, |modes, (_, those)| modes.without(those))
    }

    /// No feature.
    pub const NONE: Self = Self(0);

    /// Every feature this crate knows.
    pub const fn all() -> Self {
        Self((1 << Feature::ALL.len()) - 1)
    }

    /// Whether the feature is in the set.
    #[inline]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// The set with the feature.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | feature.bit())
    }

    /// The set without the feature.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !feature.bit())
    }

    /// The set without what the mask forbids, and without what needs a forbidden feature.
    #[must_use]
    pub fn masked(self, mask: FeatureMask) -> Self {
        let mut set = Self(self.0 & !mask.0.0);
        for (feature, needs) in NEEDS {
            if !set.has(*needs) {
                set = set.without(*feature);
            }
        }
        set
    }

    /// The features in the set.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |feature| self.has(*feature))
    }
}

/// Features that cannot be had without another.
pub(crate) const NEEDS: &[(Feature, Feature)] = &[
    (Feature::DeferTaskrun, Feature::SingleIssuer),
    (Feature::WritevFixed, Feature::FixedBuffers),
    (Feature::MultishotRecv, Feature::BufRing),
    (Feature::ZcReport, Feature::SendmsgZc),
];

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|feature| feature.info().name)).finish()
    }
}

/// Features that must not be used even where the kernel has them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct FeatureMask(FeatureSet);

impl FeatureMask {
    /// Forbids nothing.
    pub const NONE: Self = Self(FeatureSet::NONE);

    /// Leaves what a 6.1 kernel has.
    pub const KERNEL_6_1: Self = Self::NONE
        .forbid(Feature::NoSqarray)
        .forbid(Feature::NoIowait)
        .forbid(Feature::WritevFixed)
        .forbid(Feature::ZcReport);

    /// Forbids one more feature.
    #[must_use]
    pub const fn forbid(self, feature: Feature) -> Self {
        Self(self.0.with(feature))
    }

    /// Whether the feature is forbidden.
    pub const fn forbids(self, feature: Feature) -> bool {
        self.0.has(feature)
    }
}

impl FromStr for FeatureMask {
    type Err = UnknownFeature;

    /// Parses names separated by commas; empty text forbids nothing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(str::parse).try_fold(Self::NONE, |mask, feature| Ok(mask.forbid(feature?)))
    }
}

/// Why a feature is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Switched off by a [`FeatureMask`].
    Masked,
    /// The kernel does not know it.
    NotInKernel(Errno),
    /// It needs a feature that is not used.
    Needs(Feature),
    /// The locked-memory limit of this many bytes is too small.
    LockedMemory(Errno, u64),
    /// Refused for another reason.
    Refused(Errno),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Masked => f.write_str("switched off by the feature mask"),
            Reason::NotInKernel(errno) => write!(f, "this kernel does not have it ({errno})"),
            Reason::Needs(feature) => write!(f, "it needs {feature}"),
            Reason::LockedMemory(errno, limit) => {
                write!(
                    f,
                    "{errno}: the locked-memory limit is {limit} bytes; raise it (ulimit -l) or grant CAP_IPC_LOCK"
                )
            }
            Reason::Refused(errno) => write!(f, "refused: {errno}"),
        }
    }
}

/// A feature that is not used, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub feature: Feature,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.feature.info();
        write!(f, "{} (Linux {}): {}; without it {}", info.name, info.since, self.reason, info.without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name parses back to its feature, and no two share one.
    #[test]
    fn names_parse_back() {
        for feature in Feature::ALL {
            assert_eq!(feature.info().name.parse(), Ok(*feature));
        }
        let all = known().replace(' ', "");
        let mask: FeatureMask = all.parse().expect("a list of all names");
        assert!(Feature::ALL.iter().all(|feature| mask.forbids(*feature)));
    }

    /// A mask takes what depends on the masked feature with it, and nothing else.
    #[test]
    fn masks_respect_needs() {
        let mask: FeatureMask = "buf_ring, single_issuer".parse().expect("known names");
        let set = FeatureSet::all().masked(mask);
        let gone = [Feature::BufRing, Feature::MultishotRecv, Feature::SingleIssuer, Feature::DeferTaskrun];
        for feature in Feature::ALL {
            assert_eq!(set.has(*feature), !gone.contains(feature), "{feature}");
        }
    }

    /// A wrong name is refused, and the message lists the right ones.
    #[test]
    fn unknown_names_are_refused() {
        let error = "buf_ring,warp_drive".parse::<FeatureMask>().expect_err("no such feature");
        assert_eq!(error.name, "warp_drive");
        assert!(error.to_string().contains("writev_fixed"));
    }
}
