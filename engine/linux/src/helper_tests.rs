//! Helper threads: steps in order, slabs numbered, nothing left behind.

use std::sync::mpsc;
use std::time::Duration;

use rohrpost_engine_core::disk::{Caching, OpenMode};
use rohrpost_engine_core::format::names::{TopicName, TopicPartition};
use rohrpost_engine_core::ops::Event;
use rohrpost_engine_core::platform::Arena;
use rohrpost_engine_core::types::{ByteCount, Offset, Position};

use super::*;
use crate::inbox::Inbox;
use crate::poll::PollPlatform;

fn name(partition: i32) -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), partition)
}

fn step(partition: i32, offset: i64) -> Box<Step<PollPlatform>> {
    let log_start_offset = Offset::new(offset);
    Box::new(Step::RaiseLogStart { name: name(partition), log_start_offset })
}

fn wait_for(inbox: &mut Inbox<PollPlatform>, count: usize) -> Vec<Event<PollPlatform>> {
    let mut events = Vec::new();
    while events.len() < count {
        inbox.drain(&mut events);
        std::thread::sleep(Duration::from_millis(1));
    }
    events
}

fn token_of(event: &Event<PollPlatform>) -> u64 {
    match event {
        Event::StepDone { token, .. } => token.0,
        _ => panic!("not a step"),
    }
}

/// A partition whose step blocks keeps its later steps waiting, in order, and nobody else's.
#[test]
fn steps_are_ordered_by_partition_and_overlap_otherwise() {
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let run: RunStep<PollPlatform> = Box::new(move |step| {
        if let Step::RaiseLogStart { name, log_start_offset } = &step
            && name.partition() == 0
            && *log_start_offset == Offset::ZERO
        {
            blocked.lock().unwrap().recv().unwrap();
        }
        StepOutput::LogStartRaised(Ok(()))
    });
    let helper = Helper::start(2, run).unwrap();
    let mut inbox = Inbox::new(1).unwrap();
    let shard = helper.for_shard(inbox.mailbox());
    for token in 0..3 {
        shard.submit_step(Token(token), step(0, token as i64));
    }
    for token in 10..14 {
        shard.submit_step(Token(token), step(1, token as i64));
    }
    let others: Vec<_> = wait_for(&mut inbox, 4).iter().map(token_of).collect();
    assert_eq!(others, [10, 11, 12, 13]);
    release.send(()).unwrap();
    let blocked: Vec<_> = wait_for(&mut inbox, 3).iter().map(token_of).collect();
    assert_eq!(blocked, [0, 1, 2]);
}

/// A file's steps are ordered with the steps of the partition it belongs to.
#[test]
fn files_and_names_of_a_partition_share_a_key() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("t-7")).unwrap();
    let path = dir.path().join("t-7/00000000000000000000.log");
    let file = LinuxFile::open(&path, OpenMode::CreateNew, Caching::Buffered).unwrap();
    let to = Position::new(4096);
    let extend = Step::<PollPlatform>::Extend { file, from: Position::ZERO, to, zero: false };
    assert_eq!(partition_of(&extend), partition_of(&step(7, 0)));
}

#[test]
fn slabs_are_numbered_by_shard_and_work_is_finished_before_the_end() {
    let run: RunStep<PollPlatform> = Box::new(|_| StepOutput::LogStartRaised(Ok(())));
    let helper = Helper::start(1, run).unwrap();
    let mut inboxes = [Inbox::new(1).unwrap(), Inbox::new(1).unwrap()];
    for inbox in &inboxes {
        let shard = helper.for_shard(inbox.mailbox());
        shard.grow();
        shard.grow();
        shard.submit_step(Token(1), step(0, 0));
    }
    drop(helper);
    for inbox in &mut inboxes {
        let events = wait_for(inbox, 3);
        let slabs = events.into_iter().filter_map(|event| match event {
            Event::Grown(slab) => Some(slab),
            _ => None,
        });
        let mut arena = LinuxArena::new(2);
        slabs.for_each(|slab| arena.adopt(slab));
        assert_eq!(arena.capacity(), ByteCount::new(2 * crate::arena::SLAB_CAPACITY.get()));
    }
}
