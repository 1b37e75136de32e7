//! What commands the disk of a test: the control socket of QEMU's storage daemon, one JSON object a line.
//!
//! Owns the connection. Always holds: a command has been carried out when its function returns.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rohrpost_tests::disk::say;
use serde_json::{Value, json};

/// The daemon's control socket.
#[derive(Debug)]
pub(crate) struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// To a daemon that was started with this socket and listens.
    pub(crate) fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| say(socket, &error))?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(|error| error.to_string())?;
        let mut control = Self { stream: BufReader::new(stream) };
        control.read()?;
        control.ask("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|error| format!("the control socket: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))
    }

    fn ask(&mut self, what: &str, arguments: Value) -> Result<(), String> {
        let request = json!({ "execute": what, "arguments": arguments }).to_string();
        writeln!(self.stream.get_mut(), "{request}").map_err(|error| error.to_string())?;
        loop {
            let answer = self.read()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{request}: {error}"));
            }
        }
    }

    /// Lets through so many writes a second; 0 for all.
    pub(crate) fn limit_writes(&mut self, a_second: u64) -> Result<(), String> {
        let limits = json!({ "iops-write": a_second });
        self.ask("qom-set", json!({ "path": "/objects/group", "property": "limits", "value": limits }))
    }

    /// Puts a node that fails as told under the top one, for good.
    pub(crate) fn fail(&mut self, rules: Value) -> Result<(), String> {
        let node =
            json!({ "driver": "blkdebug", "node-name": "bad", "image": "disk", "inject-error": rules });
        self.ask("blockdev-add", node)?;
        let top =
            json!({ "driver": "throttle", "node-name": "top", "throttle-group": "group", "file": "bad" });
        self.ask("blockdev-reopen", json!({ "options": [top] }))
    }
}
