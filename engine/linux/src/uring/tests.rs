//! The ring driver under every feature set it must work with.

use std::sync::OnceLock;

use rohrpost_engine_core::message::{Reply, Request, Ticket};
use rohrpost_engine_core::ops::{Driver, Event, Ops};
use rohrpost_engine_core::platform::Arena;

use super::{Feature, FeatureMask, UringConfig, UringDriver, UringPlatform, UringTuning, probe};
use crate::arena::LinuxArena;
use crate::helper::Helper;
use crate::inbox::{Inbox, Mailbox, ReplySink};
use crate::testing::{Options, Rig, disk_bodies, net_bodies, recall_bodies, reference_bodies, skip};

struct NoReplies;

impl ReplySink<UringPlatform> for NoReplies {
    fn reply(&mut self, _: Ticket, _: Reply<UringPlatform>) {
        panic!("these tests expect no replies");
    }
}

/// Helper threads that bring slabs; the tests here run no steps.
fn helper() -> &'static Helper<UringPlatform> {
    static HELPER: OnceLock<Helper<UringPlatform>> = OnceLock::new();
    let start = || Helper::start(1, Box::new(|_| panic!("no steps"))).expect("two threads");
    HELPER.get_or_init(start)
}

pub(super) fn driver(mask: FeatureMask, options: Options) -> UringDriver {
    tuned(mask, options, UringTuning::default()).0
}

fn tuned(mask: FeatureMask, options: Options, tuning: UringTuning) -> (UringDriver, Mailbox<UringPlatform>) {
    let report = probe(mask).expect("io_uring works where the tests run");
    let config = UringConfig {
        recv_buf_count: options.recv_buf_count,
        recv_buf_len: options.recv_buf_len,
        tuning,
        ..UringConfig::new(options.limits, report)
    };
    let inbox = Inbox::new(1000).expect("an eventfd");
    let mailbox = inbox.mailbox();
    let helper = helper().for_shard(inbox.mailbox());
    let driver = UringDriver::new(config, options.listener, inbox, helper, Box::new(NoReplies));
    (driver.expect("a ring"), mailbox)
}

/// Everything on, every single feature off, a 6.1 kernel's features, and none at all.
fn masks() -> Vec<FeatureMask> {
    let singles = Feature::ALL.iter().map(|feature| FeatureMask::NONE.forbid(*feature));
    let none = Feature::ALL.iter().fold(FeatureMask::NONE, |mask, feature| mask.forbid(*feature));
    [FeatureMask::NONE, FeatureMask::KERNEL_6_1, none].into_iter().chain(singles).collect()
}

/// Whether io_uring works here at all; says so when not, since the caller then tests nothing.
pub(super) fn available() -> bool {
    let report = probe(FeatureMask::NONE);
    if let Err(error) = &report {
        skip(error);
    }
    report.is_ok()
}

pub(super) fn under_every_mask(body: impl Fn(&dyn Fn(Options) -> UringDriver)) {
    if !available() {
        return;
    }
    for mask in masks() {
        println!("{mask:?}");
        body(&|options| driver(mask, options));
    }
}

/// Brings the arena a slab the way the shard gets one: asked for, registered, delivered.
pub(super) fn grow(driver: &mut UringDriver, arena: &mut LinuxArena) {
    let (mut ops, mut events) = (Ops::with_capacity(1), Vec::new());
    ops.grow = true;
    while events.is_empty() {
        driver.turn(&mut ops, &mut events, None).expect("a turn");
    }
    let Some(Event::Grown(slab)) = events.pop() else { panic!("a slab was asked for") };
    arena.adopt(slab);
}

#[test]
fn writes_land_where_they_belong() {
    under_every_mask(|make| disk_bodies::writes_land_where_they_belong(make, grow));
}

#[test]
fn reads_fill_their_chunk() {
    under_every_mask(|make| disk_bodies::reads_fill_their_chunk(make, grow));
}

#[test]
fn failed_writes_say_why() {
    if !available() {
        return;
    }
    disk_bodies::failed_writes_say_why(|options| driver(FeatureMask::NONE, options));
}

#[test]
fn more_operations_than_the_queue_holds() {
    under_every_mask(|make| disk_bodies::more_operations_than_the_queue_holds(make));
}

#[test]
fn requests_and_answers() {
    under_every_mask(|make| net_bodies::requests_and_answers(make));
}

#[test]
fn partial_sends_lose_nothing() {
    under_every_mask(|make| net_bodies::partial_sends_lose_nothing(make));
}

#[test]
fn reset_in_the_middle_of_a_send() {
    under_every_mask(|make| net_bodies::reset_in_the_middle_of_a_send(make));
}

#[test]
fn close_in_the_middle_of_a_send() {
    under_every_mask(|make| net_bodies::close_in_the_middle_of_a_send(make));
}

#[test]
fn a_recalled_send_was_not_sent() {
    under_every_mask(|make| recall_bodies::a_recalled_send_was_not_sent(make));
}

#[test]
fn pause_and_resume() {
    under_every_mask(|make| net_bodies::pause_and_resume(make));
}

#[test]
fn no_receive_buffer_left() {
    under_every_mask(|make| net_bodies::no_receive_buffer_left(make));
}

#[test]
fn files_are_sent() {
    under_every_mask(|make| net_bodies::files_are_sent(make));
}

#[test]
fn a_full_table_waits() {
    under_every_mask(|make| net_bodies::a_full_table_waits(make));
}

#[test]
fn many_short_connections() {
    if !available() {
        return;
    }
    net_bodies::many_short_connections(|options| driver(FeatureMask::NONE, options), 3000);
    under_every_mask(|make| net_bodies::many_short_connections(make, 100));
}

#[test]
fn dropped_in_the_middle() {
    under_every_mask(|make| net_bodies::dropped_in_the_middle(make));
}

/// A registered slab is used through its registration, and an unregistered one is not; both counted.
#[test]
fn registered_memory_is_used_as_such() {
    if !available() {
        return;
    }
    let mut rig = Rig::new(driver(FeatureMask::NONE, Options::default()));
    let mut arena = LinuxArena::new(1);
    grow(&mut rig.driver, &mut arena);
    if let Some(missing) = rig.driver.missing().iter().find(|gone| gone.feature == Feature::FixedBuffers) {
        return skip(missing);
    }
    disk_bodies::one_write(&mut rig, &mut arena);
    let stats = rig.driver.counters();
    assert_eq!((stats.slabs_registered, stats.fixed_count, stats.plain_count), (1, 1, 0));
    let mut foreign = crate::testing::arena();
    disk_bodies::one_write(&mut rig, &mut foreign);
    let stats = rig.driver.counters();
    assert_eq!((stats.fixed_count, stats.plain_count), (1, 1), "same slab index, other memory");
}

#[test]
fn other_threads_wake_a_parked_shard() {
    wakes(UringTuning::default());
}

/// It need not have gone to sleep for that, and clients notice nothing.
#[test]
fn other_threads_wake_a_spinning_shard() {
    let spin = std::time::Duration::from_micros(150);
    wakes(UringTuning { spin, ..UringTuning::default() });
    wakes(UringTuning { spin: std::time::Duration::MAX, ..UringTuning::default() });
    if !available() {
        return;
    }
    for mask in masks() {
        let tuning = UringTuning { spin, ..UringTuning::default() };
        net_bodies::requests_and_answers(|options| tuned(mask, options, tuning).0);
    }
}

/// Another thread wakes a shard that waits without a deadline, again and again, and every message
/// arrives, in order. Afterwards the shard sleeps again.
fn wakes(tuning: UringTuning) {
    if !available() {
        return;
    }
    for mask in masks() {
        let (mut driver, mailbox) = tuned(mask, Options::default(), tuning);
        let sender = std::thread::spawn(move || {
            for number in 0..200 {
                mailbox.request(Ticket(number), Request::Shutdown).expect("the inbox has room");
                if number % 3 == 0 {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            }
        });
        let (mut ops, mut events, mut next) = (Ops::with_capacity(1), Vec::new(), 0);
        while next < 200 {
            driver.turn(&mut ops, &mut events, None).expect("a turn");
            for event in events.drain(..) {
                let Event::Request(Ticket(number), _) = event else { panic!("only requests were sent") };
                assert_eq!(number, next);
                next += 1;
            }
        }
        sender.join().expect("the sender sent");
        assert_sleeps(&mut driver);
    }
}

/// An idle driver turns at its deadlines only, and reports nothing.
fn assert_sleeps(driver: &mut UringDriver) {
    let (mut ops, mut events) = (Ops::with_capacity(1), Vec::new());
    let before = driver.stats().turns();
    let deadline = driver.now().mono.plus_millis(30);
    while driver.now().mono < deadline {
        driver.turn(&mut ops, &mut events, Some(deadline)).expect("a turn");
        assert!(events.is_empty());
    }
    let turns = driver.stats().turns() - before;
    assert!(turns <= 5, "waiting is not polling: {turns} turns");
}

#[test]
fn an_idle_driver_sleeps() {
    under_every_mask(|make| {
        let (options, _) = Options::listening();
        assert_sleeps(&mut make(options));
    });
}

/// A turn with disk and network operations makes two calls to the kernel, one without disk
/// operations makes one; so does every turn of a driver that is told to.
#[test]
fn two_entries_a_turn_at_most() {
    if !available() {
        return;
    }
    for one_enter in [false, true] {
        let tuning = UringTuning { one_enter, ..UringTuning::default() };
        entries_of_writes(tuned(FeatureMask::NONE, Options::default(), tuning).0, u64::from(!one_enter));
    }
}

fn entries_of_writes(driver: UringDriver, extra: u64) {
    let mut rig = Rig::new(driver);
    let mut arena = crate::testing::arena();
    for _ in 0..3 {
        let counts = |driver: &UringDriver| (driver.stats().turns(), driver.stats().kernel_entries());
        let before = counts(&rig.driver);
        disk_bodies::one_write(&mut rig, &mut arena);
        let after = counts(&rig.driver);
        let (turns, entries) = (after.0 - before.0, after.1 - before.1);
        assert_eq!(entries, turns + extra, "one turn had a disk operation");
    }
}

/// With the pipe, without it (then it is a copy), without registered memory, and as on a 6.1 kernel.
fn with_and_without_references(body: impl Fn(&dyn Fn(Options) -> UringDriver)) {
    if !available() {
        return;
    }
    let none = FeatureMask::NONE;
    for mask in [
        none,
        FeatureMask::KERNEL_6_1,
        none.forbid(Feature::FixedBuffers),
        none.forbid(Feature::ReferencePipe),
    ] {
        body(&|options| driver(mask, options));
    }
}

#[test]
fn stalled_readers_get_what_was_sent_by_reference() {
    with_and_without_references(|make| reference_bodies::stalled_readers_get_what_was_sent(make));
}

#[test]
fn references_survive_partial_sends_and_resets() {
    with_and_without_references(|make| reference_bodies::partial_sends_and_resets(make));
}

#[test]
fn writes_see_replaced_pages() {
    with_and_without_references(|make| reference_bodies::writes_see_replaced_pages(make));
}
