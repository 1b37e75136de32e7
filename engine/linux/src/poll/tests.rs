//! The driver by hand, over real files and sockets.

use rohrpost_engine_core::log::step::StepOutput;
use rohrpost_engine_core::message::{Reply, Request, Ticket};
use rohrpost_engine_core::ops::{Driver, Event};
use rohrpost_engine_core::platform::Arena;

use super::*;
use crate::helper::{Helper, RunStep};
use crate::inbox::Mailbox;
use crate::testing::{
    Options, Rig, disk_bodies, limit_bodies, net_bodies, pipe_bodies, recall_bodies, reference_bodies,
};

struct NoReplies;

impl ReplySink<PollPlatform> for NoReplies {
    fn reply(&mut self, ticket: Ticket, _: Reply<PollPlatform>) {
        panic!("nobody asked {ticket:?}");
    }
}

/// A driver with threads of its own; they end with it.
struct TestDriver {
    driver: PollDriver,
    mailbox: Mailbox<PollPlatform>,
    _helper: Helper<PollPlatform>,
}

impl Driver for TestDriver {
    type Platform = PollPlatform;
    type Error = PollError;

    fn now(&self) -> Now {
        self.driver.now()
    }

    fn turn(
        &mut self,
        ops: &mut Ops<PollPlatform>,
        events: &mut Vec<Event<PollPlatform>>,
        deadline: Option<Nanos>,
    ) -> Result<(), PollError> {
        self.driver.turn(ops, events, deadline)
    }
}

fn make(options: Options) -> TestDriver {
    let config = PollConfig {
        connections_max: options.limits.connections_max,
        recv_buf_len: options.recv_buf_len,
        recv_buf_count: usize::from(options.recv_buf_count),
        ..PollConfig::default()
    };
    let inbox = Inbox::new(8).unwrap();
    let mailbox = inbox.mailbox();
    let run: RunStep<PollPlatform> = Box::new(|_| StepOutput::SegmentsDeleted(Ok(())));
    let helper = Helper::start(1, run).unwrap();
    let shard = helper.for_shard(mailbox.clone());
    let listener = options.listener;
    let driver = PollDriver::new(config, listener, inbox, shard, Box::new(NoReplies)).unwrap();
    TestDriver { driver, mailbox, _helper: helper }
}

fn no_registration(_: &mut TestDriver, arena: &mut LinuxArena) {
    arena.adopt(LinuxSlab::allocate(0).unwrap());
}

macro_rules! bodies {
    ($($body:path => $name:ident ($($more:expr),*);)*) => {
        $(#[test]
        fn $name() {
            $body(make $(, $more)*);
        })*
    };
}

bodies! {
    net_bodies::requests_and_answers => requests_and_answers();
    net_bodies::partial_sends_lose_nothing => partial_sends_lose_nothing();
    net_bodies::reset_in_the_middle_of_a_send => reset_in_the_middle_of_a_send();
    net_bodies::close_in_the_middle_of_a_send => close_in_the_middle_of_a_send();
    net_bodies::pause_and_resume => pause_and_resume();
    net_bodies::no_receive_buffer_left => no_receive_buffer_left();
    net_bodies::files_are_sent => files_are_sent();
    net_bodies::a_full_table_waits => a_full_table_waits();
    net_bodies::many_short_connections => many_short_connections(10_000);
    net_bodies::dropped_in_the_middle => dropped_in_the_middle();
    disk_bodies::writes_land_where_they_belong => writes_land_where_they_belong(no_registration);
    disk_bodies::reads_fill_their_chunk => reads_fill_their_chunk(no_registration);
    disk_bodies::failed_writes_say_why => failed_writes_say_why();
    disk_bodies::more_operations_than_the_queue_holds => more_operations_than_the_queue_holds();
    limit_bodies::full_disk => full_disk();
    pipe_bodies::ranges_arrive_whole => ranges_arrive_whole();
    pipe_bodies::pipe_and_memory_keep_their_order => pipe_and_memory_keep_their_order();
    pipe_bodies::a_reset_leaves_nothing_for_the_next => a_reset_leaves_nothing_for_the_next();
    pipe_bodies::closed_while_filling => closed_while_filling();
    pipe_bodies::pipes_are_bounded => pipes_are_bounded();
    pipe_bodies::refused_fills_say_why => refused_fills_say_why();
    pipe_bodies::cached_reads_bring_the_same_bytes => cached_reads_bring_the_same_bytes();
    pipe_bodies::dropped_with_full_pipes => dropped_with_full_pipes();
    recall_bodies::a_recalled_send_was_not_sent => a_recalled_send_was_not_sent();
}

#[test]
fn out_of_descriptors() {
    if limit_bodies::in_child("poll::tests::out_of_descriptors") {
        limit_bodies::out_of_descriptors(make);
    }
}

#[test]
fn no_descriptor_for_a_pipe() {
    if limit_bodies::in_child("poll::tests::no_descriptor_for_a_pipe") {
        pipe_bodies::no_descriptor_for_a_pipe(make);
    }
}

/// A driver that waits without a deadline is woken by a request, by a step's end and by fresh memory.
#[test]
fn waiting_ends_when_something_is_posted() {
    let mut rig = Rig::new(make(Options::default()));
    let mailbox = rig.driver.mailbox.clone();
    let sender = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        mailbox.request(Ticket(9), Request::Shutdown).unwrap();
    });
    let mut events = Vec::new();
    while events.is_empty() {
        rig.driver.turn(&mut rig.ops, &mut events, None).unwrap();
    }
    assert!(matches!(events[..], [Event::Request(Ticket(9), Request::Shutdown)]));
    sender.join().unwrap();
    rig.ops.grow = true;
    events.clear();
    while events.is_empty() {
        rig.driver.turn(&mut rig.ops, &mut events, None).unwrap();
    }
    assert!(!rig.ops.grow);
    assert!(matches!(&events[..], [Event::Grown(slab)] if slab.index() == 0));
}

/// Nothing to do: one turn waits until its deadline and no longer, and takes one system call.
#[test]
fn an_idle_turn_ends_at_its_deadline() {
    let mut rig = Rig::new(make(Options::default()));
    let before = rig.driver.driver.stats();
    let entries = before.kernel_entries();
    let deadline = rig.driver.now().mono.plus_millis(3);
    let mut events = Vec::new();
    rig.driver.turn(&mut rig.ops, &mut events, Some(deadline)).unwrap();
    assert!(events.is_empty());
    assert!(rig.driver.now().mono >= deadline);
    assert_eq!(rig.driver.driver.stats().kernel_entries() - entries, 1);
    let past = rig.driver.now().mono;
    rig.driver.turn(&mut rig.ops, &mut events, Some(past)).unwrap();
}

#[test]
fn stalled_readers_get_what_was_sent_by_reference() {
    reference_bodies::stalled_readers_get_what_was_sent(make);
}

#[test]
fn references_survive_partial_sends_and_resets() {
    reference_bodies::partial_sends_and_resets(make);
}

#[test]
fn writes_see_replaced_pages() {
    reference_bodies::writes_see_replaced_pages(make);
}
