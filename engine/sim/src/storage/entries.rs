//! Changes of directories, and making them durable.

use std::path::Path;

use rohrpost_engine_core::disk::Errno;

use super::{Lie, OpKind, Storage};

impl Storage {
    pub(crate) fn create_dir(&mut self, path: &Path) -> Result<(), Errno> {
        self.run(OpKind::Entry, |disk| {
            let (parent, name) = disk.resolve_parent(path)?;
            if disk.names.lookup(parent, name).is_some() {
                return Err(Errno::EXIST);
            }
            let inode = disk.inode_new();
            disk.names.add_directory(inode);
            disk.names.change(&mut disk.seq, vec![(parent, name.to_owned(), Some(inode))]);
            Ok(())
        })
    }

    pub(crate) fn sync_dir(&mut self, path: &Path) -> Result<(), Errno> {
        self.run(OpKind::Sync, |disk| {
            let inode = disk.resolve(path)?;
            if disk.lie != Some(Lie::SyncDirectory) {
                disk.names.sync(inode);
            }
            Ok(())
        })
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        self.run(OpKind::Entry, |disk| {
            let (from_dir, from_name) = disk.resolve_parent(from)?;
            let (to_dir, to_name) = disk.resolve_parent(to)?;
            let inode = disk.names.lookup(from_dir, from_name).ok_or(Errno::NOENT)?;
            if let Some(replaced) = disk.names.lookup(to_dir, to_name)
                && disk.names.list(replaced).is_some_and(|entries| !entries.is_empty())
            {
                return Err(Errno::EXIST);
            }
            let edits =
                vec![(from_dir, from_name.to_owned(), None), (to_dir, to_name.to_owned(), Some(inode))];
            disk.names.change(&mut disk.seq, edits);
            Ok(())
        })
    }

    pub(crate) fn exchange(&mut self, one: &Path, other: &Path) -> Result<(), Errno> {
        self.run(OpKind::Entry, |disk| {
            let places = (disk.resolve_parent(one)?, disk.resolve_parent(other)?);
            let ((one_dir, one_name), (other_dir, other_name)) = places;
            let first = disk.names.lookup(one_dir, one_name).ok_or(Errno::NOENT)?;
            let second = disk.names.lookup(other_dir, other_name).ok_or(Errno::NOENT)?;
            let edits = vec![
                (one_dir, one_name.to_owned(), Some(second)),
                (other_dir, other_name.to_owned(), Some(first)),
            ];
            disk.names.change(&mut disk.seq, edits);
            Ok(())
        })
    }

    pub(crate) fn unlink(&mut self, path: &Path) -> Result<(), Errno> {
        self.run(OpKind::Entry, |disk| {
            let (parent, name) = disk.resolve_parent(path)?;
            let inode = disk.names.lookup(parent, name).ok_or(Errno::NOENT)?;
            if disk.names.is_directory(inode) {
                return Err(Errno::INVAL);
            }
            disk.names.change(&mut disk.seq, vec![(parent, name.to_owned(), None)]);
            Ok(())
        })
    }

    pub(crate) fn remove_dir(&mut self, path: &Path) -> Result<(), Errno> {
        self.run(OpKind::Entry, |disk| {
            let (parent, name) = disk.resolve_parent(path)?;
            let inode = disk.names.lookup(parent, name).ok_or(Errno::NOENT)?;
            if disk.names.list(inode).is_none_or(|entries| !entries.is_empty()) {
                return Err(Errno::EXIST);
            }
            disk.names.change(&mut disk.seq, vec![(parent, name.to_owned(), None)]);
            Ok(())
        })
    }
}
