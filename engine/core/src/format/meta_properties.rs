//! `meta.properties`, the identity of a log directory, in Java's properties syntax.

use std::fmt::Write as _;

use super::checkpoint::CheckpointError;

/// What `meta.properties` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaProperties {
    /// The node that owns the directory.
    pub node_id: i32,
    /// The cluster it belongs to.
    pub cluster_id: String,
    /// The directory's own id; brokers before 3.7 have none.
    pub directory_id: Option<String>,
}

impl MetaProperties {
    /// Reads version 1, the only one Kafka 4 knows.
    ///
    /// # Errors
    /// `NotText`, `Version`, `Missing`, or `Line` for a node id that is no number.
    pub fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let text = std::str::from_utf8(bytes).map_err(|e| CheckpointError::NotText(e.valid_up_to()))?;
        let properties = properties(text);
        // The last one counts if a key comes twice, as in Java.
        let find = |key: &str| properties.iter().rev().find(|p| p.key == key);
        let version = find("version").ok_or(CheckpointError::Missing("version"))?;
        if version.value != "1" {
            return Err(CheckpointError::Version { expected: "1", found: version.value.clone() });
        }
        let node = find("node.id").ok_or(CheckpointError::Missing("node.id"))?;
        let node_id = node.value.parse().map_err(|_| CheckpointError::Line {
            line: node.line,
            expected: "node.id=<number>",
            found: node.value.clone(),
        })?;
        let cluster_id = find("cluster.id").ok_or(CheckpointError::Missing("cluster.id"))?.value.clone();
        Ok(Self { node_id, cluster_id, directory_id: find("directory.id").map(|p| p.value.clone()) })
    }

    /// The file's content.
    pub fn write(&self) -> String {
        let mut out = format!("node.id={}\n", self.node_id);
        if let Some(id) = &self.directory_id {
            let _ = writeln!(out, "directory.id={}", escape(id)); // a String takes every write
        }
        let _ = write!(out, "version=1\ncluster.id={}\n", escape(&self.cluster_id));
        out
    }
}

struct Property {
    line: usize,
    key: String,
    value: String,
}

/// Java's properties: `#` and `!` comments, a backslash escapes, `=`, `:` or blanks separate. A value that goes
/// on in the next line is not joined: none of these values is long enough to be split.
fn properties(text: &str) -> Vec<Property> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line_text = line.trim_start();
        if line_text.is_empty() || line_text.starts_with(['#', '!']) {
            continue;
        }
        let mut escaped = false;
        let end = line_text.find(|c: char| {
            let separator = !escaped && (c == '=' || c == ':' || c.is_ascii_whitespace());
            escaped = c == '\\' && !escaped;
            separator
        });
        let (key, rest) = line_text.split_at(end.unwrap_or(line_text.len()));
        let rest = rest.trim_start();
        let value = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
        found.push(Property { line: i + 1, key: unescape(key), value: unescape(value) });
    }
    found
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\u{c}'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let unit = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                out.push(unit.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '=' | ':' | '#' | '!' | ' ') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file Kafka 4.3.1 wrote.
    #[test]
    fn kafka_file() {
        let file = "#\n#Sun Nov 22 14:24:51 UTC 2026\nnode.id=1\ndirectory.id=lXkElYC7-w4Hb5p3I5I7_A\nversion=1\n\
                    cluster.id=fft9voI2QEiaQMVuSi5RHQ\n";
        let parsed = MetaProperties::parse(file.as_bytes()).unwrap();
        assert_eq!((parsed.node_id, parsed.cluster_id.as_str()), (1, "fft9voI2QEiaQMVuSi5RHQ"));
        assert_eq!(parsed.directory_id.as_deref(), Some("lXkElYC7-w4Hb5p3I5I7_A"));
        let without_comments: Vec<_> = file.lines().skip(2).collect();
        assert_eq!(parsed.write().lines().collect::<Vec<_>>(), without_comments);
    }

    #[test]
    fn java_syntax() {
        let parse = |text: &str| MetaProperties::parse(text.as_bytes());
        let parsed = parse("  ! note\nversion : 1\nnode.id 7\ncluster.id = a\\=b\\u0041\\\\c \n").unwrap();
        assert_eq!(
            (parsed.node_id, parsed.cluster_id.as_str(), parsed.directory_id.as_ref()),
            (7, "a=bA\\c ", None)
        );
        assert_eq!(MetaProperties::parse(parsed.write().as_bytes()), Ok(parsed));
        assert_eq!(parse("version=1\nnode.id=1\nnode.id=2\ncluster.id=c").unwrap().node_id, 2);
    }

    #[test]
    fn damage_is_named() {
        let parse = |text: &str| MetaProperties::parse(text.as_bytes()).unwrap_err();
        assert_eq!(parse(""), CheckpointError::Missing("version"));
        assert_eq!(parse("version=0"), CheckpointError::Version { expected: "1", found: "0".to_owned() });
        assert_eq!(parse("version=1"), CheckpointError::Missing("node.id"));
        assert_eq!(parse("version=1\nnode.id=1"), CheckpointError::Missing("cluster.id"));
        assert!(matches!(parse("version=1\nnode.id=x\ncluster.id=c"), CheckpointError::Line { line: 2, .. }));
    }
}
