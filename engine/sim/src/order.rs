//! What may be reordered: completions against each other, steps of different partitions.

use rohrpost_engine_core::disk::Errno;
use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::ops::Event;

use crate::coverage::State;
use crate::platform::SimPlatform;
use crate::prng::Prng;

/// Any order among completions; requests, steps and bytes of a connection keep theirs.
pub(crate) fn shuffle_but_requests(events: &mut [Event<SimPlatform>], prng: &mut Prng) {
    let ordered = |event: &Event<SimPlatform>| {
        matches!(
            event,
            Event::Request(..)
                | Event::Letter(..)
                | Event::ShardEnded(_)
                | Event::StepDone { .. }
                | Event::Received { .. }
                | Event::Writable(_)
                | Event::Accepted { .. }
                | Event::Closed(_)
        )
    };
    let mut end = events.len();
    while end > 0 {
        let start = events[..end].iter().rposition(ordered).map_or(0, |at| at + 1);
        prng.shuffle(&mut events[start..end]);
        end = start.saturating_sub(1);
    }
}

/// The partition whose steps run one after the other: the name of its directory.
pub(crate) fn partition_of(step: &Step<SimPlatform>) -> String {
    if let Step::Extend { file, .. } = step {
        let directory = file.path().parent().and_then(|parent| parent.file_name());
        let name = directory.and_then(|name| name.to_str()).expect("a segment lies in its partition");
        return name.to_owned();
    }
    step.partition().expect("companions on their way to a file name their partition").to_string()
}

/// What the engine is doing while this step runs.
pub(crate) const fn state_of(step: &Step<SimPlatform>) -> State {
    match step {
        Step::Open { .. } => State::Opening,
        Step::OpenSegment { .. } | Step::OpenGuard { .. } => State::Fetching,
        Step::RaiseLogStart { .. } | Step::DeleteSegments { .. } | Step::DeletePartition { .. } => {
            State::Deleting
        }
        Step::Close { .. } => State::Stopping,
        Step::CreateSegment { .. }
        | Step::PrepareSegment { .. }
        | Step::Extend { .. }
        | Step::WriteCompanions(_)
        | Step::Seal { .. }
        | Step::Scrub(_) => State::Upkeep,
    }
}

/// A result as one number, for the trace.
pub(crate) fn result_number(result: &Result<u64, Errno>) -> u64 {
    match result {
        Ok(number) => *number,
        Err(errno) => u64::MAX - errno.0 as u64,
    }
}
