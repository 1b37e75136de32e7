//! Hosts that forbid: a system call filter, a locked-memory limit. Each story runs in a process of its
//! own, since limits and filters cannot be taken back: the test starts its own binary again.

use std::os::fd::AsRawFd;

use rohrpost_engine_core::limits::ShardLimits;
use rohrpost_engine_core::ops::Event;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::tests::{available, driver, grow};
use super::{Feature, FeatureMask, Missing, Reason, SetupError, probe};
use crate::arena::LinuxArena;
use crate::testing::limit_bodies::{self, in_child};
use crate::testing::{Options, Rig, disk_bodies, kernel_is_at_least, net_bodies, skip};

fn without_locked_memory_rights(limit: u64) {
    let mut sets = capabilities(None).expect("a thread may ask");
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    sets.permitted.remove(CapabilitySet::IPC_LOCK);
    sets.inheritable.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).expect("rights may be given up");
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(Resource::Memlock, limit).expect("limits may be lowered");
}

/// A container's default profile answers `io_uring_setup` with EPERM or ENOSYS: the error says that a
/// filter is the likely cause, names the calls to allow, and names the driver that works.
#[test]
fn a_filter_is_named_with_its_remedy() {
    if !available() {
        return;
    }
    for errno in [libc::EPERM, libc::ENOSYS] {
        let explained = std::thread::spawn(move || {
            forbid_io_uring(errno);
            probe(FeatureMask::NONE).expect_err("the filter forbids it")
        });
        let error = explained.join().expect("the thread only probes");
        assert!(matches!(error, SetupError::Filtered { errno: seen } if seen.0 == errno), "{error}");
        let text = error.to_string();
        for word in ["seccomp", "io_uring_setup", "poll driver"] {
            assert!(text.contains(word), "{text}");
        }
    }
}

/// Lets `io_uring_setup` fail with `errno`, for the calling thread only.
fn forbid_io_uring(errno: i32) {
    rustix::thread::set_no_new_privs(true).expect("always allowed");
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let return_errno = libc::SECCOMP_RET_ERRNO | errno as u32;
    let mut filter = [
        // The system call's number is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, return_errno),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (operation, mode) = (libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER);
    // SAFETY: [U28] the program and its filter outlive the call, which copies them.
    let result = unsafe { libc::prctl(operation, mode, &raw const program) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// 8 MiB of locked memory, no right to exceed it: the ring fits in its small profile, a slab does not.
/// The slab is used unregistered, this is said once by name, and everything works.
#[test]
fn a_slab_beyond_the_locked_memory_limit_is_used_unregistered() {
    if !available() {
        return;
    }
    if !in_child("uring::hostile_tests::a_slab_beyond_the_locked_memory_limit_is_used_unregistered") {
        return;
    }
    without_locked_memory_rights(8 << 20);
    let options = Options { limits: ShardLimits::small(), ..Options::default() };
    let mut rig = Rig::new(driver(FeatureMask::NONE, options));
    let mut arena = LinuxArena::new(2);
    grow(&mut rig.driver, &mut arena);
    // What an older kernel lacks is missing for another reason.
    let by_limit = |missing: &[Missing]| {
        let missing = missing.iter().copied();
        missing.filter(|m| matches!(m.reason, Reason::LockedMemory(..))).collect::<Vec<_>>()
    };
    let missing = by_limit(rig.driver.missing());
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert_eq!(missing[0].feature, Feature::FixedBuffers);
    assert!(matches!(missing[0].reason, Reason::LockedMemory(_, limit) if limit == 8 << 20));
    assert!(missing[0].to_string().contains("ulimit -l"), "{}", missing[0]);
    disk_bodies::one_write(&mut rig, &mut arena);
    let stats = rig.driver.counters();
    assert_eq!((stats.slabs_unregistered, stats.fixed_count, stats.plain_count), (1, 0, 1));
    grow(&mut rig.driver, &mut arena);
    assert_eq!(by_limit(rig.driver.missing()).len(), 1, "said once");
    drop(rig);
    net_bodies::requests_and_answers(|options| driver(FeatureMask::NONE, options));
}

/// Not even a ring fits: the error names the limit and the ways out.
#[test]
fn a_ring_beyond_the_locked_memory_limit_is_an_error_with_its_remedy() {
    if !available() {
        return;
    }
    if !in_child("uring::hostile_tests::a_ring_beyond_the_locked_memory_limit_is_an_error_with_its_remedy") {
        return;
    }
    without_locked_memory_rights(0);
    let error = match probe(FeatureMask::NONE) {
        Err(error) => error,
        Ok(report) if !kernel_is_at_least(6, 14) => {
            // Such a kernel does not count rings, but registered buffers as ever.
            let is_limit = |m: &&Missing| matches!(m.reason, Reason::LockedMemory(_, 0));
            assert_eq!(report.missing.iter().find(is_limit).map(|m| m.feature), Some(Feature::FixedBuffers));
            return skip("this kernel does not count rings as locked memory");
        }
        Ok(report) => panic!("no byte may be locked: {report:?}"),
    };
    assert!(matches!(error, SetupError::LockedMemory { limit: 0, .. }), "{error:?}");
    let text = error.to_string();
    for word in ["ulimit -l", "CAP_IPC_LOCK", "poll driver"] {
        assert!(text.contains(word), "{text}");
    }
}

/// No descriptor is left to accept with: the shard rests instead of trying in a loop, and accepts when
/// one is back, with and without multishot requests.
#[test]
fn no_descriptor_left_to_accept_with() {
    if !available() {
        return;
    }
    if in_child("uring::hostile_tests::no_descriptor_left_to_accept_with") {
        limit_bodies::out_of_descriptors(|options| driver(FeatureMask::NONE, options));
    }
}

#[test]
fn no_descriptor_left_to_accept_one_by_one_with() {
    if !available() {
        return;
    }
    if in_child("uring::hostile_tests::no_descriptor_left_to_accept_one_by_one_with") {
        let mask = FeatureMask::NONE.forbid(Feature::MultishotAccept);
        limit_bodies::out_of_descriptors(|options| driver(mask, options));
    }
}

/// Nobody closes anything: time alone makes the shard try again, and not in a loop.
#[test]
fn accepting_resumes_by_itself() {
    if !available() {
        return;
    }
    if !in_child("uring::hostile_tests::accepting_resumes_by_itself") {
        return;
    }
    let (options, address) = Options::listening();
    let mut rig = Rig::new(driver(FeatureMask::NONE, options));
    let client = std::net::TcpStream::connect(address).expect("the backlog takes it");
    limit_bodies::let_threads_rest();
    let before = rustix::process::getrlimit(Resource::Nofile);
    let lowest_free = client.try_clone().expect("a descriptor is free").as_raw_fd() as u64;
    let none_left = Rlimit { current: Some(lowest_free), ..before };
    rustix::process::setrlimit(Resource::Nofile, none_left).expect("limits may be lowered");
    // The kernel looks at the limit when the request is made, and that is in the first turn.
    (0..3).for_each(|_| rig.turn());
    assert!(rig.driver.counters().accept_starved_count > 0, "accepting did not notice");
    assert!(rig.events.is_empty(), "accepted without a descriptor");
    rustix::process::setrlimit(Resource::Nofile, before).expect("the hard limit is as it was");
    rig.until("connection", |event| matches!(event, Event::Accepted { .. }).then_some(()));
    let starved = rig.driver.counters().accept_starved_count;
    assert!(starved < 20, "tried {starved} times");
    assert_eq!(rig.driver.listener_error(), None);
}

/// A full disk is an error or a short write, and is over when there is space.
#[test]
fn full_disk() {
    if !available() {
        return;
    }
    limit_bodies::full_disk(|options| driver(FeatureMask::NONE, options));
}

/// The sysctl is the host's; its message can be tested, its setting cannot.
#[test]
fn a_sysctl_is_named_with_its_remedy() {
    let text = SetupError::Disabled { sysctl: 2 }.to_string();
    assert!(text.contains("sysctl -w kernel.io_uring_disabled=0"), "{text}");
    assert!(text.contains("poll driver"), "{text}");
}
