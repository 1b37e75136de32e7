//! From samples to a picture: folding, the share of unknown frames, flamegraph and differential flamegraph.
//!
//! Always holds: a picture names no host but those of XML namespaces, so that opening it opens nothing else.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FoldOptions};
use inferno::{differential, flamegraph};

use super::sampler::Sampler;
use crate::error::{BenchError, Result};

/// Hosts that name XML namespaces.
const NAMESPACES: &[&str] = &["http://www.w3.org/", "http://github.com/jonhoo/inferno"];

/// Stacks with their counts, one line each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Folded {
    text: Vec<u8>,
    /// Samples in it.
    pub(super) samples: u64,
    /// Of these, with at least one frame of which no name is known.
    unknown: u64,
}

impl Folded {
    /// Reads what the server processes have left.
    pub(super) fn read(files: &[PathBuf], sampler: Sampler) -> Result<Self> {
        let mut folded = Self::default();
        for file in files {
            if sampler == Sampler::Signals {
                folded.push(&std::fs::read(file).map_err(BenchError::file("read", file))?);
            } else {
                folded.push(&collapse(file)?);
            }
        }
        Ok(folded)
    }

    fn push(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            let Some((stack, count)) = line.rsplit_once(' ') else { continue };
            let count: u64 = count.parse().unwrap_or(0);
            self.samples += count;
            // The first name is the thread's.
            if stack.split(';').skip(1).any(is_unknown) {
                self.unknown += count;
            }
            // The kernel names its workers after the process, which is another one in every round.
            let (thread, frames) = stack.split_once(';').unwrap_or((stack, ""));
            let thread = if thread.starts_with("iou-wrk-") { "iou-wrk" } else { thread };
            self.text.extend_from_slice(format!("{thread};{frames} {count}\n").as_bytes());
        }
    }

    /// Samples with an unknown frame, of all: 0 to 1.
    pub(super) fn unknown_share(&self) -> f64 {
        self.unknown as f64 / self.samples.max(1) as f64
    }
}

/// inferno puts the file's name in brackets where there is no symbol.
fn is_unknown(frame: &str) -> bool {
    frame.is_empty() || frame == "Unknown" || (frame.starts_with('[') && frame.ends_with(']'))
}

/// Lets perf name the frames and folds them.
fn collapse(file: &Path) -> Result<Vec<u8>> {
    let failed = |why: String| BenchError::Process { who: "perf script", why };
    let mut perf = Command::new("perf")
        // Without the period, so that each sample counts one.
        .args(["script", "--no-inline", "--force", "-F", "comm,pid,tid,time,event,ip,sym,dso", "-i"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stdout = perf.stdout.take().ok_or_else(|| failed("has no stdout".into()))?;
    let mut text = Vec::new();
    let mut folder = Folder::from(FoldOptions::default());
    let folded = folder.collapse(BufReader::new(stdout), &mut text);
    let status = perf.wait().map_err(|error| failed(error.to_string()))?;
    folded.map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(text) } else { Err(failed(status.to_string())) }
}

/// A flamegraph of `folded`; with `before`, of the difference to it: red is what has grown.
pub(super) fn svg(folded: &Folded, before: Option<&Folded>, title: &str, subtitle: &str) -> Result<String> {
    let failed = |error: std::io::Error| BenchError::Process { who: "flamegraph", why: error.to_string() };
    let mut options = flamegraph::Options::default();
    options.title = title.to_string();
    options.subtitle = Some(subtitle.to_string());
    options.deterministic = true;
    let mut svg = Vec::new();
    if let Some(before) = before {
        let mut both = Vec::new();
        let normalize = differential::Options { normalize: true, ..Default::default() };
        differential::from_readers(normalize, &before.text[..], &folded.text[..], &mut both)
            .map_err(failed)?;
        flamegraph::from_reader(&mut options, &both[..], &mut svg).map_err(failed)?;
    } else {
        flamegraph::from_reader(&mut options, &folded.text[..], &mut svg).map_err(failed)?;
    }
    Ok(without_links(&String::from_utf8_lossy(&svg)))
}

/// The text without the addresses that inferno leaves in comments.
fn without_links(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("http") {
        let (before, link) = rest.split_at(at);
        out.push_str(before);
        let end = link.find(|c: char| c.is_whitespace() || "\"'<>".contains(c)).unwrap_or(link.len());
        let (link, after) = link.split_at(end);
        let is_link = link.starts_with("http://") || link.starts_with("https://");
        if !is_link || NAMESPACES.iter().any(|known| link.starts_with(known)) {
            out.push_str(link);
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACKS: &str = "shard;main;serve;[libc.so.6];tcp_sendmsg 3\nshard;main;serve 7\n[weird];main 2\n";

    fn folded(text: &str) -> Folded {
        let mut folded = Folded::default();
        folded.push(text.as_bytes());
        folded
    }

    /// A stack counts as unknown once, however many of its frames are; a thread's name is no frame.
    #[test]
    fn unknown_frames_are_counted_by_samples() {
        let folded = folded(STACKS);
        assert_eq!((folded.samples, folded.unknown), (12, 3));
        assert!((folded.unknown_share() - 0.25).abs() < 1e-9);
        assert!(Folded::default().unknown_share() < 1e-9);
    }

    /// The picture holds the frames and the title and names no host; the differential knows both sides.
    #[test]
    fn a_picture_is_drawn_without_links() {
        let picture = svg(&folded(STACKS), None, "the title", "the rest").unwrap();
        for word in ["tcp_sendmsg", "the title", "the rest", "<svg"] {
            assert!(picture.contains(word), "{word}");
        }
        let hosts: Vec<_> = picture
            .match_indices("://")
            .map(|(at, _)| &picture[at..(at + 24).min(picture.len())])
            .filter(|host| !host.starts_with("://www.w3.org") && !host.starts_with("://github.com/jonhoo"))
            .collect();
        assert!(hosts.is_empty(), "{hosts:?}");
        let more = folded("shard;main;serve;copy 5\nshard;main;serve 7\n");
        let difference = svg(&more, Some(&folded(STACKS)), "d", "s").unwrap();
        assert!(difference.contains("copy") && difference.contains('%'));
    }

    #[test]
    fn kernel_workers_of_all_rounds_are_one() {
        let folded = folded("iou-wrk-17;io_wq_worker 2\niou-wrk-4711;io_wq_worker 3\n");
        assert_eq!(folded.text, b"iou-wrk;io_wq_worker 2\niou-wrk;io_wq_worker 3\n");
    }

    #[test]
    fn links_vanish_and_text_stays() {
        let text = "see https://lwn.net/a-b/ for httpd, xmlns=\"http://www.w3.org/2000/svg\"";
        assert_eq!(without_links(text), "see  for httpd, xmlns=\"http://www.w3.org/2000/svg\"");
    }
}
