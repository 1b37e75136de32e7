//! What the load asks for, and when: batches of a producer, lagging readers, open-loop schedules, the next in line.

use super::Load;
use crate::client::conn::Role;
use crate::client::readers;
use crate::error::Result;
use crate::sys;
use crate::wire::Request;

impl Load {
    pub(super) fn produce(&mut self) -> Result<()> {
        self.producer.as_mut().map_or(Ok(()), |producer| producer.produce(&mut self.connections))
    }

    /// Sends the fetches of lagging readers whose time has come. Returns when the next one is due.
    pub(super) fn send_paced(&mut self) -> Result<u64> {
        while let Some((conn, due_ns)) = self.pace.take_due(sys::now_ns()) {
            self.request_next(conn, due_ns)?;
        }
        Ok(self.pace.next_due_ns())
    }

    /// Open loop: sends every request whose time has come. Returns when the next one is due.
    pub(super) fn send_due(&mut self) -> Result<u64> {
        let Some(interval) = self.interval_ns else { return Ok(u64::MAX) };
        let now = sys::now_ns();
        let mut next = u64::MAX;
        for conn in 0..self.due_ns.len() {
            while self.due_ns[conn] <= now {
                let due = self.due_ns[conn];
                if due >= self.window_end_ns {
                    self.due_ns[conn] = u64::MAX;
                    break;
                }
                if self.connections[conn].outstanding.len() >= crate::wire::PIPELINE_COUNT_MAX {
                    // The server's pipeline is full. The request stays due from its intended time.
                    break;
                }
                self.report.offered += u64::from(due >= self.window_start_ns);
                self.request_hot(conn, due)?;
                self.due_ns[conn] = due + interval;
            }
            if self.due_ns[conn] > now {
                next = next.min(self.due_ns[conn]);
            }
        }
        Ok(next)
    }

    pub(super) fn request_hot(&mut self, conn: usize, since_ns: u64) -> Result<()> {
        let Some(hot) = &self.config.workload.hot else { return Ok(()) };
        let from = self.config.plan.hot_of(conn, hot.connections, hot.spread);
        let connection = &mut self.connections[conn];
        let at = if hot.spread {
            connection.next_id as usize % from.len()
        } else {
            self.random.usize(0..from.len())
        };
        let request = Request::fetch(connection.next_id, from[at], hot.max_bytes);
        connection.request(Request { flags: self.config.flags, ..request }, since_ns)
    }

    /// A closed-loop reader's next request.
    pub(super) fn request_next(&mut self, conn: usize, now: u64) -> Result<()> {
        let flags = self.config.flags;
        match self.connections[conn].role {
            Role::Hot => self.request_hot(conn, now),
            // Its limits say when, see `produce`.
            Role::Producer => Ok(()),
            Role::Cold(reader) => {
                let Some(cold) = &self.config.workload.cold else { return Ok(()) };
                let run = &self.config.plan.cold[reader];
                if self.cold_until_ns.is_some_and(|after| now >= self.window_start_ns + after) {
                    return Ok(());
                }
                if self.cold_next[reader] == run.len() && cold.behind_len.is_some() {
                    if self.report.reader_caught_up(self.config.plan.cold.len(), now - self.window_start_ns) {
                        self.window_end_ns = now;
                    }
                    return Ok(());
                }
                if self.cold_next[reader] == run.len() {
                    self.cold_next[reader] = 0;
                    self.report.cold_wraps += 1;
                }
                let offset = run[self.cold_next[reader]];
                self.cold_next[reader] += 1;
                let connection = &mut self.connections[conn];
                let request = Request::fetch(connection.next_id, offset, cold.max_bytes);
                connection.request(Request { flags, ..request }, now)
            }
            Role::Stalled(number) => {
                readers::request_stalled(&self.config, &mut self.connections[conn], number, now)
            }
            Role::Tail => readers::request_tail(&self.config, &mut self.connections[conn], now),
            Role::Backlog(reader) => {
                let connection = &mut self.connections[conn];
                let wraps = readers::request_backlog(&self.config, connection, reader, now)?;
                self.report.cold_wraps += u64::from(wraps);
                Ok(())
            }
        }
    }
}
