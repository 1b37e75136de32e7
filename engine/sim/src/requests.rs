//! What clients ask for next, drawn by weight: appends, fetches from everywhere, deletions, questions.

use bytes::Bytes;
use rohrpost_engine_core::fetch::FetchRequest;
use rohrpost_engine_core::message::{PartitionId, Request, Ticket};
use rohrpost_engine_core::ops::Now;
use rohrpost_engine_core::types::{ByteCount, Offset};
use rohrpost_history::Event;

use crate::settings::Settings;
use crate::workload::{Asked, Standing, Workload};

impl Workload {
    /// The next thing a client does; `None` if it would rather wait.
    pub(crate) fn next_request(&mut self, settings: &Settings, now: Now) -> Option<(Ticket, Request)> {
        let partition = self.prng.index(self.oracles.len());
        if self.standing[partition] != Standing::Open {
            return None;
        }
        let id = PartitionId(partition as u32);
        let mix = &settings.mix;
        let weights = [
            mix.append,
            mix.append_invalid,
            mix.fetch,
            mix.park,
            mix.ask,
            mix.delete_records,
            mix.delete_partition,
        ];
        Some(match self.draw(&weights) {
            0 => self.append(partition, settings.value_len_max, now),
            1 => {
                let len_max = self.oracles[partition].settings().config.batch_len_max.get();
                let bytes = self.batches.make_invalid(&mut self.prng, now.wall, len_max);
                let ticket = self.ask(partition, Asked::Append { sent: None });
                (ticket, Request::Append { partition: id, batches: Bytes::from(bytes) })
            }
            2 => {
                let request = self.draw_fetch(partition);
                self.fetch(partition, request, now, false)
            }
            3 => {
                let mut request = self.draw_fetch(partition);
                if self.prng.one_in(2) {
                    request.offset = self.oracles[partition].marks().high_watermark;
                }
                request.len_min = ByteCount::new(self.prng.magnitude(1, 100_000));
                request.wait_ms_max = self.prng.magnitude(1, 5_000) as u32;
                self.fetch(partition, request, now, false)
            }
            4 if self.prng.one_in(3) => return self.cancel(),
            4 => (self.ask(partition, Asked::Watermarks), Request::Watermarks(id)),
            5 => self.delete_records(partition),
            _ => {
                // Whatever is still on its way could arrive behind the deletion.
                if self.outstanding.values().any(|(of, _)| *of == partition) {
                    return None;
                }
                self.standing[partition] = Standing::Deleting;
                self.oracles[partition].delete();
                (self.ask(partition, Asked::Delete), Request::Delete(id))
            }
        })
    }

    fn append(&mut self, partition: usize, value_len_max: u64, now: Now) -> (Ticket, Request) {
        let oracle = &mut self.oracles[partition];
        let len_max = oracle.settings().config.batch_len_max.get();
        let count = if self.prng.one_in(4) { self.prng.range(2, 5) } else { 1 };
        let mut bytes = Vec::new();
        for _ in 0..count {
            bytes.extend(self.batches.make(&mut self.prng, now.wall, value_len_max, len_max));
        }
        let bytes = Bytes::from(bytes);
        let sent = oracle.send(&bytes);
        let batches = oracle.batches_of(sent.clone());
        let request = Request::Append { partition: PartitionId(partition as u32), batches: bytes };
        let ticket = self.ask(partition, Asked::Append { sent: Some(sent) });
        self.history.append(ticket.0, partition, batches);
        (ticket, request)
    }

    fn draw_fetch(&mut self, partition: usize) -> FetchRequest {
        let marks = self.oracles[partition].marks();
        let (start, end) = (marks.log_start_offset.get(), marks.high_watermark.get());
        let offset = match self.prng.below(16) {
            0 => start - 1,
            1 => end + self.prng.range(1, 10) as i64,
            2..=4 => end,
            5..=8 => (end - self.prng.magnitude(0, 20) as i64).max(start),
            9 => start,
            _ => start + self.prng.below((end - start) as u64 + 1) as i64,
        };
        let len = self.prng.magnitude(0, 300_000);
        FetchRequest::new(PartitionId(partition as u32), Offset::new(offset), ByteCount::new(len))
    }

    pub(crate) fn fetch(
        &mut self,
        partition: usize,
        request: FetchRequest,
        now: Now,
        scan: bool,
    ) -> (Ticket, Request) {
        let known = self.oracles[partition].marks();
        let ticket = self.ask(partition, Asked::Fetch { request, at: now, known, scan });
        self.history.push(&Event::FetchSent { request: ticket.0, partition, from: request.offset.get() });
        (ticket, Request::Fetch(request))
    }

    /// Cancels a fetch, which may have been answered meanwhile. The cancellation itself gets no answer.
    fn cancel(&self) -> Option<(Ticket, Request)> {
        let fetch = |(ticket, (_, asked)): (&u64, &(usize, Asked))| {
            matches!(asked, Asked::Fetch { scan: false, .. }).then_some(Ticket(*ticket))
        };
        let fetch = self.outstanding.iter().find_map(fetch)?;
        Some((fetch, Request::CancelFetch(fetch)))
    }

    fn delete_records(&mut self, partition: usize) -> (Ticket, Request) {
        let marks = self.oracles[partition].marks();
        let (start, end) = (marks.log_start_offset.get(), marks.high_watermark.get());
        let before = match self.prng.below(8) {
            0 => -1,
            1 => end + 1 + self.prng.below(100) as i64,
            _ => start + self.prng.below((end - start) as u64 + 1) as i64,
        };
        self.history.trim(partition, before);
        self.oracles[partition].delete_records(before);
        let request =
            Request::DeleteRecords { partition: PartitionId(partition as u32), before: Offset::new(before) };
        (self.ask(partition, Asked::DeleteRecords), request)
    }

    fn draw(&mut self, weights: &[u64]) -> usize {
        let mut at = self.prng.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if at < *weight {
                return index;
            }
            at -= weight;
        }
        unreachable!("the draw lies below the sum of the weights")
    }

    pub(crate) fn ask(&mut self, partition: usize, asked: Asked) -> Ticket {
        self.ticket_next += 1;
        self.outstanding.insert(self.ticket_next, (partition, asked));
        Ticket(self.ticket_next)
    }
}
