//! Ids of topics, made and read, and names of directories that are deleted.

use std::path::Path;

use crate::disk::Disk;
use crate::error::PartitionError;
use crate::format::checkpoint::{self, CheckpointError};
use crate::format::names::{self, TopicId, TopicName, TopicPartition};
use crate::log::files::read_file;

/// The id of a new topic: a hash of its name and the seed, in the form of a random UUID. All partitions of a topic get
/// the same one; another seed gives another one.
pub(crate) fn new_topic_id(topic: &TopicName, seed: [u8; 16]) -> TopicId {
    let mut id = fnv_1a(&[&seed, topic.as_str().as_bytes()]).to_be_bytes();
    id[6] = id[6] & 0x0f | 0x40; // version 4
    id[8] = id[8] & 0x3f | 0x80; // variant 1
    if id[0] >> 2 == 0x3e {
        id[0] ^= 0x80; // Kafka's ids never begin with a dash, which command lines take for an option
    }
    TopicId::from_bytes(id)
}

/// The topic id in a partition's directory.
pub(crate) fn read_topic_id<D: Disk>(disk: &D, dir: &Path) -> Result<Option<TopicId>, PartitionError> {
    let path = dir.join(names::PARTITION_METADATA);
    let unusable = |reason: CheckpointError| {
        let reason = format!("{reason}; restore it, or open the directory with the program that wrote it");
        PartitionError::Unusable { path: path.clone(), reason }
    };
    read_file(disk, &path)?
        .map(|bytes| checkpoint::parse_partition_metadata(&bytes).map_err(unusable))
        .transpose()
}

/// Tells this deletion of the partition from every other one of this process.
pub(crate) fn deletion_id(tp: &TopicPartition, seed: [u8; 16], number: u64) -> u128 {
    fnv_1a(&[&seed, tp.to_string().as_bytes(), &number.to_be_bytes()])
}

/// FNV-1a, 128 bits.
fn fnv_1a(parts: &[&[u8]]) -> u128 {
    const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = parts.iter().copied().flatten();
    bytes.fold(OFFSET_BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_1a_has_its_published_values() {
        assert_eq!(fnv_1a(&[]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv_1a(&[b"a"]), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(fnv_1a(&[b"foo", b"bar"]), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn ids_follow_name_and_seed_and_never_begin_with_a_dash() {
        for i in 0..1000 {
            let topic = TopicName::new(&format!("topic{i}")).unwrap();
            let id = new_topic_id(&topic, [1; 16]);
            assert_eq!(id, new_topic_id(&topic, [1; 16]));
            assert_ne!(id, new_topic_id(&topic, [2; 16]));
            assert!(!id.to_string().starts_with('-'), "{id}");
        }
    }
}
