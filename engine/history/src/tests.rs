//! Every class, by the shortest history that shows it, and one beside it that does not.

use super::*;
use Class::*;

/// One partition's history, in the making. Every batch takes two offsets; its number is its request's.
#[derive(Clone, Default)]
struct Story {
    events: Vec<Event>,
    fetches: u64,
}

impl Story {
    fn of() -> Self {
        Self::default()
    }

    fn with(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    fn sent(self, number: u64) -> Self {
        let batches = vec![Sent { number, records: 2 }];
        self.with(Event::AppendSent { request: number, client: 0, partition: 0, batches })
    }

    fn acked(self, number: u64, base: i64) -> Self {
        self.sent(number).with(Event::Acked { request: number, base })
    }

    fn ask(mut self, request: u64, from: i64) -> Self {
        self.fetches += 1;
        self.with(Event::FetchSent { request, partition: 0, from })
    }

    fn answer(self, request: u64, marks: (i64, i64), have: &[(i64, u64)]) -> Self {
        let batches =
            have.iter().map(|(base, number)| Stored { base: *base, number: Some(*number) }).collect();
        self.with(Event::Fetched { request, log_start: marks.0, high_watermark: marks.1, batches })
    }

    /// A fetch and its answer at once.
    fn fetch(self, from: i64, marks: (i64, i64), have: &[(i64, u64)]) -> Self {
        let request = 1_000 + self.fetches;
        self.ask(request, from).answer(request, marks, have)
    }

    fn trimmed(self, start: i64) -> Self {
        self.with(Event::TrimSent { partition: 0, before: start })
            .with(Event::Trimmed { partition: 0, start })
    }

    fn restarted(self) -> Self {
        self.with(Event::Restarted)
    }

    fn looked(self, log_start: i64, high_watermark: i64) -> Self {
        self.with(Event::Looked { partition: 0, log_start, high_watermark })
    }

    fn classes(&self) -> Vec<Class> {
        let found = check([Rules::default()], &self.events);
        found.iter().for_each(|violation| println!("{violation}"));
        found.iter().map(|violation| violation.class).collect()
    }

    /// This history shows this and nothing else.
    fn shows(self, class: Class) {
        assert_eq!(self.classes(), [class]);
    }

    fn holds(self) {
        assert_eq!(self.classes(), []);
    }
}

#[test]
fn a_lost_write_is_found_at_the_end_and_in_the_middle() {
    let two = Story::of().acked(1, 0).acked(2, 2);
    two.clone().restarted().fetch(0, (0, 4), &[(0, 1), (2, 2)]).holds();
    two.clone().restarted().fetch(0, (0, 2), &[(0, 1)]).shows(LostWrite);
    two.clone().restarted().looked(0, 2).shows(LostWrite);
    two.clone().restarted().fetch(0, (0, 4), &[(2, 2)]).shows(LostWrite);
    // From the front, without anybody having deleted it.
    two.clone().restarted().looked(2, 4).shows(LostWrite);
    two.trimmed(2).restarted().looked(2, 4).holds();
    // What was sent and not acknowledged may be there or not.
    let open = Story::of().acked(1, 0).sent(2).restarted();
    open.clone().fetch(0, (0, 2), &[(0, 1)]).holds();
    open.fetch(0, (0, 4), &[(0, 1), (2, 2)]).holds();
}

#[test]
fn what_no_promise_covers_may_be_lost_and_may_not_come_back() {
    let two = Story::of().acked(1, 0).acked(2, 2).with(Event::MayHaveLost { partition: 0, from: 2 });
    two.clone().restarted().looked(0, 2).holds();
    two.clone().restarted().looked(0, 4).fetch(0, (0, 4), &[(0, 1), (2, 2)]).holds();
    two.clone().restarted().looked(0, 0).shows(LostWrite);
    let again = two.restarted().looked(0, 2).acked(3, 2);
    again.clone().fetch(0, (0, 4), &[(0, 1), (2, 3)]).holds();
    again.fetch(0, (0, 6), &[(0, 1), (2, 3), (4, 2)]).shows(Resurrected);
}

#[test]
fn a_batch_at_two_offsets_is_a_duplicate() {
    let one = Story::of().acked(1, 0);
    one.clone().fetch(0, (0, 2), &[(0, 1)]).fetch(0, (0, 2), &[(0, 1)]).holds();
    let twice = one.fetch(0, (0, 4), &[(0, 1), (2, 1)]).classes();
    assert!(twice.contains(&Duplicate), "{twice:?}");
}

#[test]
fn what_was_refused_is_not_served() {
    let refused = Story::of().sent(1).with(Event::Refused { request: 1 });
    refused.clone().fetch(0, (0, 0), &[]).holds();
    refused.fetch(0, (0, 2), &[(0, 1)]).shows(AbortedRead);
    let served_first = Story::of().sent(1).fetch(0, (0, 2), &[(0, 1)]);
    served_first.clone().with(Event::Unknown { request: 1 }).holds();
    served_first.with(Event::Refused { request: 1 }).shows(AbortedRead);
}

#[test]
fn an_offset_has_one_value() {
    let sent = Story::of().sent(1).sent(2);
    sent.clone().fetch(0, (0, 2), &[(0, 1)]).fetch(0, (0, 2), &[(0, 1)]).holds();
    sent.clone().fetch(0, (0, 2), &[(0, 1)]).fetch(0, (0, 2), &[(0, 2)]).shows(InconsistentOffsets);
    // Also where the second one begins in the middle of the first.
    sent.with(Event::Acked { request: 1, base: 0 })
        .with(Event::Acked { request: 2, base: 1 })
        .shows(InconsistentOffsets);
}

#[test]
fn an_answer_leaves_nothing_out() {
    let three = Story::of().acked(1, 0).acked(2, 2).acked(3, 4);
    three.clone().fetch(0, (0, 6), &[(0, 1)]).fetch(2, (0, 6), &[(2, 2), (4, 3)]).holds();
    // A fetch may begin in the middle of a batch.
    three.clone().fetch(3, (0, 6), &[(2, 2), (4, 3)]).holds();
    let skips = three.clone().fetch(0, (0, 6), &[(0, 1), (4, 3)]);
    skips.clone().fetch(0, (0, 6), &[(0, 1), (2, 2), (4, 3)]).shows(PollSkip);
    assert_eq!(skips.classes(), [PollSkip, LostWrite], "it was never seen again");
    three.clone().fetch(0, (0, 6), &[(2, 2), (4, 3)]).fetch(0, (0, 6), &[(0, 1)]).shows(PollSkip);
    // An empty answer below what was known.
    three.clone().fetch(4, (0, 6), &[]).fetch(2, (0, 6), &[(2, 2), (4, 3)]).shows(PollSkip);
    three.fetch(6, (0, 6), &[]).holds();
    // Offsets that nobody has, where a log has none of them, and where it may.
    let gap = Story::of().acked(1, 0).sent(2).fetch(0, (0, 6), &[(0, 1), (4, 2)]);
    assert_eq!(check([Rules { gaps: true, ..Rules::default() }], &gap.events), []);
    gap.shows(PollSkip);
}

#[test]
fn answers_do_not_go_back() {
    let two = Story::of().acked(1, 0).acked(2, 2);
    two.clone().fetch(2, (0, 4), &[(2, 2)]).holds();
    two.clone().fetch(2, (0, 4), &[(0, 1), (2, 2)]).shows(NonMonotonicPoll);
    two.fetch(0, (0, 4), &[(0, 1), (2, 2), (0, 1)]).shows(NonMonotonicPoll);
}

#[test]
fn one_clients_appends_stay_in_order() {
    let sent = Story::of().sent(1).sent(2);
    let acked = |story: Story, number, base| story.with(Event::Acked { request: number, base });
    acked(acked(sent.clone(), 1, 0), 2, 2).holds();
    acked(acked(sent.clone(), 1, 2), 2, 0).shows(NonMonotonicSend);
    // A reader sees it as well.
    sent.fetch(0, (0, 4), &[(0, 2), (2, 1)]).shows(NonMonotonicSend);
    // Two clients have no order.
    let other = Event::AppendSent {
        request: 2,
        client: 1,
        partition: 0,
        batches: vec![Sent { number: 2, records: 2 }],
    };
    let sent = Story::of().sent(1).with(other);
    acked(acked(sent, 2, 0), 1, 2).holds();
}

#[test]
fn what_was_served_stays() {
    let served = Story::of().sent(1).fetch(0, (0, 2), &[(0, 1)]).restarted();
    served.clone().fetch(0, (0, 2), &[(0, 1)]).holds();
    served.clone().looked(0, 0).shows(Phantom);
    served.fetch(0, (0, 2), &[]).shows(Phantom);
}

#[test]
fn what_a_dead_engine_had_in_flight_does_not_join_later() {
    let open = Story::of().sent(1).restarted().looked(0, 0);
    open.clone().fetch(0, (0, 0), &[]).holds();
    open.fetch(0, (0, 2), &[(0, 1)]).shows(Resurrected);
    // It may have been in the log when that was opened.
    Story::of().sent(1).restarted().looked(0, 2).fetch(0, (0, 2), &[(0, 1)]).holds();
}

#[test]
fn nothing_is_served_beyond_the_high_watermark() {
    let sent = Story::of().sent(1).sent(2);
    sent.clone().fetch(0, (0, 4), &[(0, 1), (2, 2)]).holds();
    sent.fetch(0, (0, 2), &[(0, 1), (2, 2)]).shows(PrecommittedRead);
}

#[test]
fn the_high_watermark_does_not_go_back() {
    let known = Story::of().acked(1, 0).acked(2, 2).looked(0, 4);
    known.clone().fetch(4, (0, 4), &[]).holds();
    known.clone().fetch(0, (0, 2), &[(0, 1)]).shows(HighWatermarkRegress);
    // Of records that nobody has seen nothing else is known.
    Story::of().looked(0, 4).restarted().looked(0, 2).shows(HighWatermarkRegress);
    // An answer may be older than another one that has come meanwhile.
    let late = Story::of().acked(1, 0).ask(50, 0).acked(2, 2).looked(0, 4);
    late.answer(50, (0, 2), &[(0, 1)]).holds();
}

#[test]
fn what_was_deleted_stays_deleted() {
    let known = Story::of().acked(1, 0).acked(2, 2).trimmed(2);
    known.clone().restarted().fetch(2, (2, 4), &[(2, 2)]).holds();
    known.clone().restarted().looked(0, 4).shows(LogStartRegress);
    known.clone().fetch(0, (0, 4), &[(0, 1)]).shows(LogStartRegress);
    // An answer from before the deletion.
    let late = Story::of().acked(1, 0).acked(2, 2).ask(50, 0).trimmed(2);
    late.answer(50, (0, 4), &[(0, 1), (2, 2)]).holds();
    // Retention may move the start where it is allowed to.
    let moved = Story::of().acked(1, 0).acked(2, 2).looked(2, 4);
    assert_eq!(check([Rules { retention: true, ..Rules::default() }], &moved.events), []);
    moved.shows(LostWrite);
}

#[test]
fn bytes_that_nobody_has_sent_are_garbage() {
    let one = Story::of().acked(1, 0);
    one.clone().fetch(0, (0, 2), &[(0, 1)]).holds();
    one.clone().fetch(0, (0, 4), &[(0, 1), (2, 7)]).shows(Garbage);
    let unreadable = vec![Stored { base: 0, number: None }];
    let marks = (0, 2);
    one.ask(9, 0)
        .with(Event::Fetched { request: 9, log_start: marks.0, high_watermark: marks.1, batches: unreadable })
        .shows(Garbage);
}

#[test]
fn a_deleted_partition_begins_anew() {
    let one = Story::of().acked(1, 0).with(Event::Deleted { partition: 0 });
    one.clone().restarted().looked(0, 0).acked(2, 0).fetch(0, (0, 2), &[(0, 2)]).holds();
    one.clone().looked(0, 2).fetch(0, (0, 2), &[(0, 1)]).shows(Resurrected);
    let maybe = Story::of().acked(1, 0).with(Event::MayBeDeleted { partition: 0 }).restarted();
    maybe.clone().looked(0, 0).holds();
    maybe.looked(0, 2).fetch(0, (0, 2), &[(0, 1)]).holds();
}

/// Violations say where they were seen, and every class has a name of its own.
#[test]
fn violations_say_where_and_what() {
    let rules = [Rules::default(), Rules::default()];
    let sent = Event::AppendSent {
        request: 1,
        client: 0,
        partition: 1,
        batches: vec![Sent { number: 1, records: 2 }],
    };
    let history = [sent, Event::Acked { request: 1, base: 0 }, Event::Restarted];
    let mut checker = Checker::new(rules);
    history.iter().for_each(|event| checker.push(event));
    assert_eq!((checker.verdict(), checker.batches(1)), (Ok(()), 1));
    checker.push(&Event::Looked { partition: 1, log_start: 0, high_watermark: 0 });
    let violation = checker.verdict().unwrap_err();
    assert_eq!((violation.class, violation.partition, violation.event), (LostWrite, 1, 3));
    assert_eq!(
        violation.to_string(),
        "lost-write: partition 1, event 3: batch 1, acknowledged at 0..2, is not there"
    );
    let names: std::collections::BTreeSet<_> = Class::ALL.iter().map(|class| class.name()).collect();
    assert_eq!(names.len(), Class::ALL.len());
}
