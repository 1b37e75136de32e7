//! The ring driver under every feature set it must work with.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rohrpost_engine_core::log::step::Step;
use rohrpost_engine_core::message::{Reply, Request, Ticket};
use rohrpost_engine_core::ops::{Driver, Event, Token};
use rohrpost_engine_core::platform::Arena;

use super::{Feature, FeatureMask, Outside, UringConfig, UringDriver, UringPlatform, probe};
use crate::arena::{LinuxArena, LinuxSlab};
use crate::testing::{Options, Rig, disk_bodies, net_bodies};

type TestEvent = Event<UringPlatform>;

/// What other threads send here.
enum Note {
    Request(u64),
    Slab(LinuxSlab),
}

/// Another thread's side of the test's inbox.
#[derive(Clone)]
struct Handle {
    queue: Sender<Note>,
    eventfd: Arc<OwnedFd>,
    parked: Arc<AtomicBool>,
}

impl Handle {
    fn post(&self, note: Note) {
        self.queue.send(note).expect("the driver lives");
        if self.parked.swap(false, Ordering::SeqCst) {
            rustix::io::write(&*self.eventfd, &1u64.to_ne_bytes()).expect("an eventfd takes a one");
        }
    }
}

pub(super) struct TestOutside {
    handle: Handle,
    queue: Receiver<Note>,
    first: Option<Note>,
    slabs: u32,
}

impl TestOutside {
    fn new() -> Self {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let eventfd = Arc::new(rustix::event::eventfd(0, flags).expect("an eventfd"));
        let (sender, queue) = channel();
        let handle = Handle { queue: sender, eventfd, parked: Arc::default() };
        Self { handle, queue, first: None, slabs: 0 }
    }
}

impl Outside for TestOutside {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.handle.eventfd.as_fd()
    }

    fn park(&mut self) -> bool {
        self.handle.parked.store(true, Ordering::SeqCst);
        self.first = self.first.take().or_else(|| self.queue.try_recv().ok());
        self.first.is_none()
    }

    fn unpark(&mut self) {
        self.handle.parked.store(false, Ordering::SeqCst);
    }

    fn drain(&mut self, events: &mut Vec<TestEvent>) {
        let notes = self.first.take().into_iter().chain(self.queue.try_iter());
        events.extend(notes.map(|note| match note {
            Note::Request(number) => Event::Request(Ticket(number), Request::Shutdown),
            Note::Slab(slab) => Event::Grown(slab),
        }));
    }

    fn run_step(&mut self, _: Token, _: Box<Step<UringPlatform>>) {
        panic!("these tests run no steps");
    }

    fn grow(&mut self) {
        let slab = LinuxSlab::allocate(self.slabs).expect("64 MiB of memory");
        self.slabs += 1;
        self.handle.post(Note::Slab(slab));
    }

    fn reply(&mut self, _: Ticket, _: Reply<UringPlatform>) {
        panic!("these tests expect no replies");
    }
}

pub(super) fn driver(mask: FeatureMask, options: Options) -> UringDriver<TestOutside> {
    let report = probe(mask).expect("io_uring works where the tests run");
    let config = UringConfig {
        listener: options.listener.map(OwnedFd::from),
        recv_buf_count: options.recv_buf_count,
        recv_buf_len: options.recv_buf_len,
        ..UringConfig::new(options.limits, report)
    };
    UringDriver::new(config, TestOutside::new()).expect("a ring")
}

/// Everything on, every single feature off, a 6.1 kernel's features, and none at all.
fn masks() -> Vec<FeatureMask> {
    let singles = Feature::ALL.iter().map(|feature| FeatureMask::NONE.forbid(*feature));
    let none = Feature::ALL.iter().fold(FeatureMask::NONE, |mask, feature| mask.forbid(*feature));
    [FeatureMask::NONE, FeatureMask::KERNEL_6_1, none].into_iter().chain(singles).collect()
}

fn under_every_mask(body: impl Fn(&dyn Fn(Options) -> UringDriver<TestOutside>)) {
    for mask in masks() {
        println!("{mask:?}");
        body(&|options| driver(mask, options));
    }
}

/// Brings the arena its slab the way the shard gets one: asked for, registered, delivered.
pub(super) fn grow(driver: &mut UringDriver<TestOutside>, arena: &mut LinuxArena) {
    driver.outside().grow();
    let (mut ops, mut events) = (rohrpost_engine_core::ops::Ops::with_capacity(1), Vec::new());
    driver.turn(&mut ops, &mut events, None).expect("a turn");
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
    let mut rig = Rig::new(driver(FeatureMask::NONE, Options::default()));
    let mut arena = LinuxArena::new(1);
    grow(&mut rig.driver, &mut arena);
    disk_bodies::one_write(&mut rig, &mut arena);
    let stats = rig.driver.stats();
    assert_eq!((stats.slabs_registered, stats.fixed_count, stats.plain_count), (1, 1, 0));
    let mut foreign = crate::testing::arena();
    disk_bodies::one_write(&mut rig, &mut foreign);
    let stats = rig.driver.stats();
    assert_eq!((stats.fixed_count, stats.plain_count), (1, 1), "same slab index, other memory");
}

/// Another thread wakes a shard that waits without a deadline, again and again, and every message
/// arrives, in order.
#[test]
fn other_threads_wake_a_parked_shard() {
    under_every_mask(|make| {
        let mut driver = make(Options::default());
        let handle = driver.outside().handle.clone();
        let sender = std::thread::spawn(move || {
            for number in 0..200 {
                handle.post(Note::Request(number));
                if number % 3 == 0 {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            }
        });
        let mut ops = rohrpost_engine_core::ops::Ops::with_capacity(1);
        let (mut events, mut next) = (Vec::new(), 0);
        while next < 200 {
            driver.turn(&mut ops, &mut events, None).expect("a turn");
            for event in events.drain(..) {
                let Event::Request(Ticket(number), _) = event else { panic!("only requests were sent") };
                assert_eq!(number, next);
                next += 1;
            }
        }
        sender.join().expect("the sender sent");
        let before = driver.stats().turn_count;
        let deadline = driver.now().mono.plus_millis(30);
        while driver.now().mono < deadline {
            driver.turn(&mut ops, &mut events, Some(deadline)).expect("a turn");
        }
        let turns = driver.stats().turn_count - before;
        assert!(turns <= 5, "old wake-ups keep the shard awake: {turns} turns");
    });
}

/// With nothing to do a turn ends at its deadline, not before, and reports nothing.
#[test]
fn an_idle_turn_ends_at_its_deadline() {
    under_every_mask(|make| {
        let mut driver = make(Options::default());
        let mut ops = rohrpost_engine_core::ops::Ops::with_capacity(1);
        let mut events = Vec::new();
        let deadline = driver.now().mono.plus_millis(30);
        while driver.now().mono < deadline {
            driver.turn(&mut ops, &mut events, Some(deadline)).expect("a turn");
            assert!(events.is_empty());
        }
        assert!(driver.stats().turn_count <= 5, "waiting is not polling: {:?}", driver.stats());
    });
}

/// A turn with disk and network operations makes two calls to the kernel, one without disk
/// operations makes one.
#[test]
fn two_entries_a_turn_at_most() {
    let mut rig = Rig::new(driver(FeatureMask::NONE, Options::default()));
    let mut arena = crate::testing::arena();
    for _ in 0..3 {
        let before = rig.driver.stats();
        disk_bodies::one_write(&mut rig, &mut arena);
        let after = rig.driver.stats();
        let (turns, entries) = (after.turn_count - before.turn_count, after.enter_count - before.enter_count);
        assert_eq!(entries, turns + 1, "one turn had a disk operation");
    }
}
