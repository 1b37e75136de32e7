//! The table of delivery paths. Adding one is one file beside this and one row below.
//!
//! `skeleton.rs` is the file to copy. A path's `serve` function runs on the pinned main thread of a fresh
//! server process and never returns while the process is wanted.

use rohrpost_engine::Mode;

use crate::error::{BenchError, Result};
use crate::server::ServerContext;

pub mod engine;
mod fit;
mod null;
mod pool;
mod read_write;
mod send_epoll;
mod sendfile_epoll;
mod skeleton;
mod syncer;
mod write_fdatasync;
mod write_group;

/// What a path is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Measures the harness; delivers no log bytes and takes part in no ratio.
    Harness,
    /// What the engine is compared with.
    Baseline,
    /// Ours.
    Engine,
}

/// What a path that serves nobody has fio do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// Read what others catch up with.
    Read,
    /// Write into blocks that are reserved and were never written, as a log finds them.
    Write,
    /// Write over blocks that were written before.
    Overwrite,
}

/// One row of the table.
pub struct Path {
    /// What `--paths` calls it.
    pub name: &'static str,
    /// One line for `list`.
    pub about: &'static str,
    /// What it is there for.
    pub role: Role,
    /// Serves a corpus.
    pub fetch: bool,
    /// Serves a corpus that is larger than memory: what is not resident is read while others are served.
    pub cold: bool,
    /// Appends durably.
    pub append: bool,
    /// Appends durably and serves readers at the tail.
    pub tail: bool,
    /// Serves nobody: what fio gets from the device with the same requests, for what is measured in relation to that.
    pub calibration: Option<Calibration>,
    /// Delivery mode that every request forces, if any.
    pub mode: Option<Mode>,
    /// Whether the main job runs it.
    pub main: bool,
    /// Whether `run` takes it up without being asked by name.
    pub listed: bool,
    /// Serves until the process ends.
    pub serve: fn(&mut ServerContext) -> Result<()>,
}

const NONE: Path = Path {
    name: "",
    about: "",
    role: Role::Baseline,
    fetch: false,
    cold: false,
    append: false,
    tail: false,
    calibration: None,
    mode: None,
    main: true,
    listed: true,
    serve: skeleton::serve,
};

const ENGINE_MODE: Path =
    Path { role: Role::Engine, fetch: true, cold: true, main: false, serve: engine::serve, ..NONE };

/// The engine with one idea left out or added.
const ENGINE_ABLATION: Path = Path { append: true, tail: true, ..ENGINE_MODE };

/// Every path there is.
pub static PATHS: &[Path] = &[
    Path {
        name: "null",
        about: "answers from a constant memory: what the harness itself can do",
        role: Role::Harness,
        fetch: true,
        serve: null::serve,
        ..NONE
    },
    Path {
        name: "read_write",
        about: "epoll, pread into user memory, then one writev of header and body",
        fetch: true,
        cold: true,
        serve: read_write::serve,
        ..NONE
    },
    Path {
        name: "sendfile_epoll",
        about: "epoll and sendfile from the page cache: what Kafka does",
        fetch: true,
        cold: true,
        serve: sendfile_epoll::serve,
        ..NONE
    },
    Path {
        name: "send_epoll",
        about: "epoll and one sendmsg of header and body from memory that holds the hot end of the log",
        fetch: true,
        serve: send_epoll::serve,
        ..NONE
    },
    Path {
        name: "sendfile_epoll_directpool",
        about: "sendfile_epoll for resident ranges, a pool of O_DIRECT readers for the others",
        fetch: true,
        cold: true,
        serve: pool::serve,
        ..NONE
    },
    Path {
        name: "fio_direct",
        about: "no server: fio, direct, depth 1: one job over what readers catch up with, or one for each cold reader",
        fetch: true,
        cold: true,
        calibration: Some(Calibration::Read),
        ..NONE
    },
    Path {
        name: "fio_append",
        about: "no server: fio writes blocks as long as the engine's, direct, dsync, a job a partition, files reserved",
        append: true,
        calibration: Some(Calibration::Write),
        main: false,
        ..NONE
    },
    Path {
        name: "fio_overwrite",
        about: "fio_append over files that are written already: without changes to extents, as no growing log can",
        append: true,
        calibration: Some(Calibration::Overwrite),
        main: false,
        ..NONE
    },
    Path {
        name: "write_fdatasync",
        about: "write, fdatasync, acknowledge: one thread",
        append: true,
        serve: write_fdatasync::serve,
        ..NONE
    },
    Path {
        name: "write_fdatasync_8",
        about: "write, fdatasync, acknowledge: eight threads",
        append: true,
        serve: write_fdatasync::serve_8,
        ..NONE
    },
    Path {
        name: "write_group_fdatasync",
        about: "buffered writes, one fdatasync per group on a thread per partition; tail readers by sendfile",
        append: true,
        tail: true,
        serve: write_group::serve,
        ..NONE
    },
    Path {
        name: "engine",
        about: "the engine on io_uring, its own choice of delivery",
        role: Role::Engine,
        fetch: true,
        cold: true,
        append: true,
        tail: true,
        serve: engine::serve,
        ..NONE
    },
    Path {
        name: "engine_poll",
        about: "the engine on its epoll driver",
        role: Role::Engine,
        fetch: true,
        cold: true,
        append: true,
        tail: true,
        serve: engine::serve_poll,
        ..NONE
    },
    Path {
        name: "engine_send",
        about: "the engine on io_uring, every range copied from the arena",
        mode: Some(Mode::Send),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_send_ref",
        about: "the engine on io_uring, every range by reference to the arena's pages",
        mode: Some(Mode::SendRef),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_sendfile",
        about: "the engine on io_uring, every range by sendfile from the page cache",
        mode: Some(Mode::Sendfile),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_direct_send",
        about: "the engine on io_uring, what is not in memory by direct read",
        mode: Some(Mode::DirectSend),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_send_zc",
        about: "the engine on io_uring, every range read in place by the network card (loopback copies)",
        mode: Some(Mode::DirectSendZc),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_splice",
        about: "the engine on io_uring, every range from the page cache through a pipe",
        mode: Some(Mode::Splice),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_direct_splice",
        about: "the engine on io_uring, what is not in memory past the page cache through a pipe",
        serve: engine::serve_by_splice,
        ..ENGINE_MODE
    },
    Path {
        name: "engine_poll_direct_splice",
        about: "the engine on its epoll driver, what is not in memory past the page cache through a pipe",
        serve: engine::serve_poll_by_splice,
        ..ENGINE_MODE
    },
    Path {
        name: "engine_read_send",
        about: "the engine on io_uring, what is not in memory read through the page cache",
        mode: Some(Mode::ReadSend),
        ..ENGINE_MODE
    },
    Path {
        name: "engine_buffered",
        about: "the engine on io_uring, writing through the page cache with one sync per group",
        role: Role::Engine,
        append: true,
        tail: true,
        main: false,
        serve: engine::serve_buffered,
        ..NONE
    },
    Path {
        name: "engine_unregistered",
        about: "the engine on io_uring without registered buffers: the kernel pins memory for every transfer",
        serve: engine::serve_unregistered,
        ..ENGINE_ABLATION
    },
    Path {
        name: "engine_one_enter",
        about: "the engine on io_uring, disk operations and sends of a turn in one submission",
        serve: engine::serve_one_enter,
        ..ENGINE_ABLATION
    },
    Path {
        name: "engine_spin",
        about: "the engine on io_uring, which looks for 200 us before it sleeps",
        serve: engine::serve_spin,
        ..ENGINE_ABLATION
    },
    Path {
        name: "engine_linger",
        about: "the engine on io_uring, the first append of a commit waiting 200 us for others",
        role: Role::Engine,
        append: true,
        tail: true,
        main: false,
        serve: engine::serve_linger,
        ..NONE
    },
    Path {
        name: "engine_guarded",
        about: "the engine on io_uring, with a copy of the last block beside every commit",
        role: Role::Engine,
        append: true,
        tail: true,
        main: false,
        serve: engine::serve_guarded,
        ..NONE
    },
    Path {
        name: "skeleton",
        about: "the file to copy for a new path: pread and send, without any trick",
        fetch: true,
        cold: true,
        main: false,
        listed: false,
        serve: skeleton::serve,
        ..NONE
    },
];

/// The path of this name.
///
/// # Errors
/// `Usage`, listing the names there are.
pub fn find(name: &str) -> Result<&'static Path> {
    PATHS.iter().find(|path| path.name == name).ok_or_else(|| {
        let known: Vec<_> = PATHS.iter().filter(|path| path.listed).map(|path| path.name).collect();
        BenchError::Usage(format!("unknown path `{name}`; the paths are: {}", known.join(", ")))
    })
}

impl Path {
    /// What requests to this path carry in `flags`.
    pub fn request_flags(&self) -> u16 {
        self.mode.map_or(0, engine::flags_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    /// Names are unique, every path can do something, and every workload has a baseline that is not ours.
    #[test]
    fn the_table_is_sound() {
        for (at, path) in PATHS.iter().enumerate() {
            assert!(PATHS[..at].iter().all(|other| other.name != path.name), "{} twice", path.name);
            let able = path.fetch || path.append || path.tail;
            assert!(able, "{} can do nothing", path.name);
            assert!(path.fetch || !path.cold, "{} is cold without fetch", path.name);
        }
        for workload in &Workload::all() {
            let fits = |path: &&Path| {
                path.role == Role::Baseline
                    && path.calibration.is_none()
                    && path.unfit_for(workload).is_none()
            };
            assert!(PATHS.iter().any(|path| fits(&path)), "{} has no baseline", workload.name);
        }
    }

    /// An unknown name is answered with the known ones.
    #[test]
    fn an_unknown_name_lists_the_known() {
        let error = find("sendfile").err().expect("no such path");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("sendfile_epoll"));
    }
}
