//! Batches that were sent, by the numbers under which a history knows them.

use rohrpost_engine_core::format::batch::BatchHeader;
use rohrpost_history::Sent;

use super::Oracle;

impl Oracle {
    /// The batches of a request, as [`Oracle::send`] has named them.
    pub(crate) fn batches_of(&self, sent: std::ops::Range<usize>) -> Vec<Sent> {
        let batch = |index: usize| Sent { number: index as u64, records: self.sent[index].records };
        sent.map(batch).collect()
    }

    /// The number of the batch that was sent with these bytes, as far as they go; `None` if none was.
    pub(crate) fn number_of(&self, header: &BatchHeader, bytes: &[u8]) -> Option<u64> {
        self.find(header, bytes).map(|index| index as u64)
    }
}
