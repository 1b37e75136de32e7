//! Writes the seeds of every target into `corpus/`, over what is there of the same names.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in rohrpost_engine_fuzz::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&dir)?;
        for (name, bytes) in rohrpost_engine_fuzz::corpus::seeds(target.name) {
            std::fs::write(dir.join(name), bytes)?;
        }
    }
    Ok(())
}
