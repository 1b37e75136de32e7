//! Delivery modes under ill-treatment: peers that hardly read, drivers and hosts without a mode.

use std::io::Read as _;

use rohrpost_engine::linux::uring::{Feature, FeatureMask};
use rohrpost_engine::{ByteCount, DriverChoice, FetchError, FetchRequest, LogConfig, Mode, Offset};
use rohrpost_tests::log::{DRIVERS, config};
use rohrpost_tests::served::{Log, modes};
use rohrpost_tests::service::{Client, Fetch, OK};
use rustix::net::sockopt::set_socket_recv_buffer_size;

const BATCHES: i64 = 360;

/// A reader per mode with the smallest receive buffer takes a byte now and then, while others turn the arena over
/// twice behind it. Then it reads on: what it was promised is what it gets.
#[test]
fn a_stalled_reader_gets_what_it_was_promised() {
    for driver in DRIVERS {
        let long = LogConfig { segment_len_max: ByteCount::mib(64), ..config() };
        let mut log = Log::with(driver, long, BATCHES as u64, 400_000);
        let id = log.partition().id();
        let mut stalled: Vec<_> = modes(driver)
            .into_iter()
            .enumerate()
            .map(|(at, mode)| {
                let offset = Offset::new(at as i64 * 30);
                let mut client = Client::with_buffer(log.address(), Some(1));
                client.send_fetch(id, Fetch { mode, ..Fetch::new(offset, 3 << 20) });
                (client, offset, mode, Vec::new())
            })
            .collect();
        let mut busy = log.client();
        for _ in 0..2 {
            for part in 0..10 {
                let (from, to) = (2 * BATCHES / 10 * part, 2 * BATCHES / 10 * (part + 1));
                log.read(&mut busy, from, to, Fetch::new(Offset::ZERO, 4 << 20));
                for (client, _, _, taken) in &mut stalled {
                    let mut byte = [0];
                    client.socket().read_exact(&mut byte).unwrap();
                    taken.push(byte[0]);
                }
            }
        }
        for (mut client, offset, mode, mut taken) in stalled {
            let mut rest = [0; 32];
            // Windows of a few hundred bytes open five times a second: it reads on with a buffer of the usual size.
            set_socket_recv_buffer_size(client.socket(), 1 << 20).unwrap();
            let held = taken.len();
            client.socket().read_exact(&mut rest[held..]).unwrap();
            taken.extend_from_slice(&rest[held..]);
            assert_eq!(taken[0], OK as u8, "{driver:?} {mode:?}");
            let mut body = vec![0; u32::from_le_bytes([taken[4], taken[5], taken[6], taken[7]]) as usize];
            client.socket().read_exact(&mut body).unwrap();
            assert!(body.len() > 1 << 20, "{driver:?} {mode:?}: more than sockets hold");
            log.check(&body, offset);
        }
        let stats = log.stop().stats;
        assert!(
            stats.cold_read_len > 128 << 20,
            "{driver:?}: an arena of 64 MiB was turned over twice: {stats:?}"
        );
        assert_eq!(stats.pipes_refused, 0, "{driver:?}: {stats:?}");
    }
}

/// A mode that the driver has not: an error that names it, on either way of asking, and the connection lives.
#[test]
fn a_mode_that_the_driver_lacks_is_refused_by_name() {
    let driver = DriverChoice::Poll;
    let log = Log::new(driver, 4, 10_000);
    let lacking: Vec<_> = Mode::ALL.iter().filter(|mode| !modes(driver).contains(&Some(**mode))).collect();
    assert!(lacking.contains(&&Mode::SendZc), "epoll has no completions to wait for");
    for mode in lacking {
        assert_refused(&log, *mode);
    }
    assert_eq!(
        FetchError::UnsupportedMode(Mode::SendZc).to_string(),
        "the driver in use does not support transfer mode send_zc"
    );
}

/// What is cold goes through pipes if the shard is told so, on both drivers; nothing of it stays in memory, so that
/// the second reader reads again.
#[test]
fn cold_ranges_go_through_pipes_where_the_shard_is_told_so() {
    for driver in DRIVERS {
        let mut log = Log::new(driver, 60, 400_000);
        log.stop();
        log.options_mut().limits.cold_by_splice = true;
        log.start();
        for _ in 0..2 {
            log.read(&mut log.client(), 0, 120, Fetch::new(Offset::ZERO, 1 << 20));
        }
        let len: u64 = log.sent.iter().map(|sent| sent.len() as u64).sum();
        let stats = log.stop().stats;
        assert!(stats.sent_through_pipes > len, "{driver:?}: {len} bytes, twice: {stats:?}");
        assert_eq!(stats.pipes_refused, 0, "{stats:?}");
    }
}

/// More readers than there are pipes, none of which reads: those without one are served from the arena, which is
/// counted, and all get what they asked for.
#[test]
fn readers_beyond_the_pipes_are_served_from_the_arena() {
    const READERS: i64 = 40;
    for driver in DRIVERS {
        let long = LogConfig { segment_len_max: ByteCount::mib(64), ..config() };
        let mut log = Log::with(driver, long, 60, 400_000);
        log.stop();
        log.options_mut().limits.cold_by_splice = true;
        log.start();
        let id = log.partition().id();
        let ask = |number| {
            let (mut client, offset) = (Client::with_buffer(log.address(), Some(1)), Offset::new(2 * number));
            client.send_fetch(id, Fetch::new(offset, 3 << 20));
            (client, offset)
        };
        let readers: Vec<_> = (0..READERS).map(ask).collect();
        for (client, _) in &readers {
            client.wait_for_answer();
        }
        for (mut client, offset) in readers {
            set_socket_recv_buffer_size(client.socket(), 1 << 20).unwrap();
            let told = client.answer();
            assert_eq!((told.status, told.body.len()), (OK, 3 << 20), "{driver:?} {offset}");
            log.check(&told.body, offset);
        }
        let stats = log.stop().stats;
        assert!(stats.pipes_refused > 0, "{driver:?}: {READERS} readers, fewer pipes: {stats:?}");
        assert!(stats.sent_through_pipes > 0, "{driver:?}: the others had one: {stats:?}");
    }
}

/// A host that lacks what a mode needs: the driver does not offer the mode, says so, and refuses it by name; what the
/// policy would have sent that way goes another, and is right.
#[test]
fn a_mode_whose_feature_is_missing_is_not_offered() {
    for (feature, lacking) in [
        (Feature::Splice, [Mode::Splice, Mode::DirectSplice].as_slice()),
        (Feature::SendmsgZc, &[Mode::SendZc, Mode::DirectSendZc]),
        (Feature::ReferencePipe, &[Mode::SendRef]),
    ] {
        let mut log = Log::new(DriverChoice::Uring, 20, 400_000);
        log.stop();
        log.options_mut().feature_mask = FeatureMask::NONE.forbid(feature);
        log.options_mut().limits.cold_by_splice = true;
        log.start();
        for &mode in lacking {
            assert_refused(&log, mode);
        }
        log.read(&mut log.client(), 0, 40, Fetch::new(Offset::ZERO, 1 << 20));
        let stats = log.stop().stats;
        assert_eq!(stats.sent_through_pipes == 0, feature == Feature::Splice, "{stats:?}");
        assert_eq!(stats.pipes_refused, 0, "{stats:?}");
    }
}

/// Forcing the mode is an error that names it, on either way of asking.
fn assert_refused(log: &Log, mode: Mode) {
    let request = FetchRequest {
        mode: Some(mode),
        ..FetchRequest::new(log.partition().id(), Offset::ZERO, ByteCount::mib(1))
    };
    let Err(error) = log.partition().fetch_with(request).wait() else { panic!("{mode} worked") };
    assert!(error.to_string().contains(mode.name()), "{error}");
    let forced = Fetch { mode: Some(mode), ..Fetch::new(Offset::ZERO, 1 << 20) };
    let mut client = log.client();
    assert_ne!(client.fetch(log.partition().id(), forced).status, OK, "{mode}");
    log.read(&mut client, 0, 8, Fetch::new(Offset::ZERO, 1 << 20));
    assert!(!log.offered().contains(mode), "{mode}");
}
