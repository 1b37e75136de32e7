//! The last life of some runs: a partition's files have been damaged at rest, behind the engine's back.
//!
//! One node cannot repair what its medium has forgotten. What must hold: opening ends, with the partition or with a
//! refusal; nothing acknowledged is dropped in silence; what is served either fails its checksum at the client or is
//! what somebody has sent; and the other partitions do not notice.

use std::path::Path;

use rohrpost_engine_core::error::PartitionError;
use rohrpost_engine_core::format::batch::{BatchHeader, validate};
use rohrpost_engine_core::message::{Reply, Watermarks};
use rohrpost_engine_core::types::ByteCount;

use crate::coverage::Happening;
use crate::life::Life;
use crate::platform::SimPlatform;
use crate::storage::{Damage, End};
use crate::workload::{Asked, ROOT, Standing, Workload};
use crate::world::World;

impl World {
    /// Damages a partition and lives once more, to open and read everything.
    pub(crate) fn live_damaged(&mut self) {
        let partition = self.prng.index(self.settings.partitions.len());
        let directory = Path::new(ROOT).join(self.settings.partitions[partition].name.to_string());
        let damage = *self.prng.pick(&Damage::ALL);
        let Some(done) = self.disk.storage().damage(&directory, damage) else { return };
        self.disk.storage().trace.remark(|| done);
        self.prepare_disk(false);
        self.settings.connection_share = 0;
        self.workload.damaged = Some(partition);
        let log_dir = self.open_log_dir().expect("this life is not ended by force");
        let mut life = Life::start(&self.settings, &self.disk, &log_dir, self.prng.fork(), self.now);
        self.make_ready(&mut life).expect("this life is not ended by force");
        self.now = life.now();
        life.bury(&self.workload);
        drop(log_dir);
        self.disk.storage().end_now(End::PowerCut);
    }
}

impl Workload {
    /// A damaged partition has answered.
    pub(crate) fn handle_damaged_reply(
        &mut self,
        partition: usize,
        asked: &Asked,
        reply: Reply<SimPlatform>,
    ) {
        match (asked, reply) {
            (Asked::Open, Reply::Opened(result)) => self.handle_damaged_opened(partition, result),
            (Asked::Fetch { request, .. }, Reply::Fetched(result)) => {
                let pieces = result.as_ref().map_or(&[][..], |fetched| fetched.pieces.as_slice());
                let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.as_ref()).copied().collect();
                self.handle_damaged_fetched(partition, request.offset.get(), &bytes);
            }
            (asked, _) => panic!("{asked:?} in a life that only opens and reads"),
        }
    }

    /// It was opened, or refused.
    fn handle_damaged_opened(&mut self, partition: usize, result: Result<Watermarks, PartitionError>) {
        let Ok(marks) = result else {
            self.note(Happening::DamageRefused);
            self.standing[partition] = Standing::Open;
            return;
        };
        let acked = self.oracles[partition].durable_end();
        let end = marks.high_watermark.get();
        assert!(end >= acked, "damage took what was acknowledged up to {acked}, in silence: {marks:?}");
        self.standing[partition] = Standing::Scanning(marks.log_start_offset.get());
    }

    /// Whether a partition is refused for what lies in the damaged one: a new partition asks the others of its topic
    /// for the topic's id.
    pub(crate) fn is_of_damaged(&self, error: &PartitionError) -> bool {
        let directory = |partition: usize| self.oracles[partition].settings().name.to_string();
        match (self.damaged, error) {
            (Some(damaged), PartitionError::Unusable { path, .. }) => {
                path.parent() == Some(&Path::new(ROOT).join(directory(damaged)))
            }
            _ => false,
        }
    }

    /// A fetch of a damaged partition has brought these bytes; none if it failed.
    fn handle_damaged_fetched(&mut self, partition: usize, offset: i64, bytes: &[u8]) {
        let oracle = &self.oracles[partition];
        let len_max = ByteCount::new(u64::MAX);
        let (mut rest, mut next) = (bytes, offset);
        while let Ok(header) = BatchHeader::peek(rest) {
            let len = header.batch_len().as_usize();
            if len > rest.len() || header.next_offset().get() <= next {
                break;
            }
            let sound = validate(rest, len_max).is_ok();
            assert!(
                !sound || oracle.number_of(&header, &rest[..len]).is_some(),
                "a sound batch at {} that nobody has sent",
                header.base_offset()
            );
            self.note(if sound { Happening::DamageMissed } else { Happening::DamageServed });
            (rest, next) = (&rest[len..], header.next_offset().get());
        }
        self.standing[partition] = if next > offset { Standing::Scanning(next) } else { Standing::Open };
    }
}
