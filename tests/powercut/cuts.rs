//! Live cuts: the file system is shut down under the running engine, again and again, with its journal dropped or kept;
//! some cuts hit the recovery of the cut before. Every life begins by reading back what the ones before it were promised.

use std::time::Duration;

use crate::ledger::{End, Ledger};
use crate::life::{Life, Load};
use crate::report::Line;
use crate::tally::{Run, Tally};
use rohrpost_tests::disk::{FileSystem, Journal, Mounted, text};

/// Cuts one file system takes before a new one is made.
const CUTS_PER_IMAGE: u64 = 25;
const IMAGE_MIB: u64 = 128;
/// The engine goes on for so long, at most, on a disk that is gone.
const GRACE_MS_MAX: u64 = 15;

/// Cuts until `count` of them counted.
pub(crate) fn run(run: &Run, file_system: FileSystem, count: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while tally.counted < count {
        let seed = run.seed.wrapping_add(tally.images);
        Image::new(run, file_system, seed)?
            .wear_out(&mut tally, count)
            .map_err(|what| run.keep(&what, seed))?;
        tally.images += 1;
    }
    Ok(tally)
}

/// One image and what was promised on it.
struct Image<'a> {
    run: &'a Run,
    path: std::path::PathBuf,
    random: fastrand::Rng,
    ledger: Ledger,
    /// How the last cut was made.
    last_cut: String,
}

impl<'a> Image<'a> {
    fn new(run: &'a Run, file_system: FileSystem, seed: u64) -> Result<Self, String> {
        let path = run.dir.join("image");
        file_system.make(&path, IMAGE_MIB)?;
        Ok(Self {
            run,
            path,
            random: fastrand::Rng::with_seed(seed),
            ledger: Ledger::new(),
            last_cut: String::new(),
        })
    }

    fn wear_out(&mut self, tally: &mut Tally, count: u64) -> Result<(), String> {
        for _ in 0..CUTS_PER_IMAGE {
            if tally.counted >= count {
                break;
            }
            self.cycle(tally)?;
        }
        // The last cut has not been looked at yet.
        let mounted = Mounted::new(&self.path, &self.run.dir.join("mount"))?;
        let mut life = Life::start(&Load { batches: Some(0), ..self.load(&mounted) })?;
        life.until(|_| false)?;
        if let Some(why) = life.complaint() {
            return Err(format!("does not open after a cut: {why}"));
        }
        life.tell(&mut self.ledger, |ledger| ledger.settle(End::PowerCut))?;
        tally.acked += self.ledger.acked_count;
        tally.checked += self.ledger.checked_count;
        mounted.unmount()
    }

    fn load(&self, mounted: &Mounted) -> Load {
        Load {
            root: mounted.path().join("log"),
            poll: self.run.poll,
            // A line that a kill has cut short may have been one more.
            first: self.ledger.sent_end().next_multiple_of(4) + 1_000,
            plant: self.run.plant,
            ..Load::default()
        }
    }

    /// A life and the cut that ends it.
    fn cycle(&mut self, tally: &mut Tally) -> Result<(), String> {
        let mounted = Mounted::new(&self.path, &self.run.dir.join("mount"))?;
        let mut life = Life::start(&self.load(&mounted))?;
        let in_recovery = self.random.u8(..5) == 0;
        let early = if in_recovery {
            std::thread::sleep(Duration::from_micros(self.random.u64(..40_000)));
            false
        } else {
            let mut left = 1 + self.random.usize(..200);
            let reached = life.until(|line| {
                left -= usize::from(matches!(line, Line::Ack { .. }));
                left == 0 || matches!(line, Line::Failed { .. } | Line::Refused { .. })
            })?;
            !reached || life.complaint().is_some()
        };
        if early {
            return Err(format!("complained before the cut: {:?}", life.complaint()));
        }
        let journal = if self.random.bool() { Journal::Kept } else { Journal::Dropped };
        life.mark_cut();
        mounted.cut(journal)?;
        std::thread::sleep(Duration::from_millis(self.random.u64(..=GRACE_MS_MAX)));
        life.kill()?;
        life.tell(&mut self.ledger, |ledger| ledger.settle(End::PowerCut))
            .map_err(|what| format!("after {}: {what}", self.last_cut))?;
        self.last_cut = format!("a cut with {journal:?} journal, in recovery: {in_recovery}");
        tally.cuts += 1;
        tally.in_recovery += u64::from(!life.was_ready() && tally.cuts > 1);
        tally.counted += u64::from(self.ledger.in_flight() > 0 && life.was_ready());
        drop(life);
        mounted.unmount()?;
        // Evidence, in case that the next life finds something missing and writes on.
        let copy = self.path.with_extension("cut");
        rohrpost_tests::host::run(&["cp", text(&self.path), text(&copy)]).map(drop)
    }
}
