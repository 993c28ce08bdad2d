//! Real files under the log.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corral_core::storage::log_device::{DeviceError, DeviceFile, DeviceResult, LogDevice};

/// The file that keeps a second process out of a data folder.
const LOCK_FILE: &str = "lock";

/// A data folder on a file system. Files are opened close-on-exec (the standard library's habit).
#[derive(Clone, Debug)]
pub struct FileDevice {
    root: PathBuf,
}

impl FileDevice {
    /// The folder at `root`, made durable with its missing parents.
    ///
    /// # Errors
    /// Any of the file system.
    pub fn open(root: &Path) -> DeviceResult<FileDevice> {
        make_dirs(root).map_err(|error| convert("create folder", &root.display().to_string(), &error))?;
        Ok(FileDevice { root: root.to_owned() })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn open_with(
        &self,
        operation: &'static str,
        path: &str,
        options: &OpenOptions,
    ) -> DeviceResult<Arc<dyn DeviceFile>> {
        let at = self.at(path);
        let file = options.open(&at).map_err(|error| convert(operation, &at.display().to_string(), &error))?;
        Ok(Arc::new(RealFile { file, path: at }))
    }

    fn run<T>(&self, operation: &'static str, path: &str, result: io::Result<T>) -> DeviceResult<T> {
        result.map_err(|error| convert(operation, &self.at(path).display().to_string(), &error))
    }
}

/// Creates a folder and its missing parents, each durable in its parent.
fn make_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dirs(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_dir(parent),
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// Any of the file system.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn convert(operation: &'static str, path: &str, error: &io::Error) -> DeviceError {
    let path = path.to_owned();
    match error.kind() {
        ErrorKind::NotFound => DeviceError::NotFound { path },
        _ => DeviceError::Failed { operation, path, reason: error.to_string() },
    }
}

impl LogDevice for FileDevice {
    fn create_dir(&self, path: &str) -> DeviceResult<()> {
        match std::fs::create_dir(self.at(path)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && self.at(path).is_dir() => Ok(()),
            result => self.run("create folder", path, result),
        }
    }

    fn list(&self, path: &str) -> DeviceResult<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.run("list", path, std::fs::read_dir(self.at(path)))? {
            let entry = self.run("list", path, entry)?;
            // Names that are not UTF-8 are not ours.
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        self.open_with("create", path, OpenOptions::new().read(true).write(true).create_new(true))
    }

    fn open(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        self.open_with("open", path, OpenOptions::new().read(true).write(true))
    }

    fn rename(&self, from: &str, to: &str) -> DeviceResult<()> {
        self.run("rename", from, std::fs::rename(self.at(from), self.at(to)))
    }

    fn remove(&self, path: &str) -> DeviceResult<()> {
        self.run("remove", path, std::fs::remove_file(self.at(path)))
    }

    fn remove_dir_all(&self, path: &str) -> DeviceResult<()> {
        match std::fs::remove_dir_all(self.at(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => self.run("remove folder", path, result),
        }
    }

    fn sync_dir(&self, path: &str) -> DeviceResult<()> {
        self.run("sync folder", path, sync_dir(&self.at(path)))
    }
}

struct RealFile {
    file: File,
    path: PathBuf,
}

impl RealFile {
    fn run<T>(&self, operation: &'static str, result: io::Result<T>) -> DeviceResult<T> {
        result.map_err(|error| convert(operation, &self.path.display().to_string(), &error))
    }
}

impl DeviceFile for RealFile {
    fn read(&self, offset: u64, len: usize) -> DeviceResult<Vec<u8>> {
        let end = self.size()?.min(offset.saturating_add(len as u64));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.run("read", Err(error)),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> DeviceResult<()> {
        self.run("write", self.file.write_all_at(bytes, offset))
    }

    fn sync(&self) -> DeviceResult<()> {
        // Syncs the length too, if it changed; preallocated segments do without that second write.
        self.run("sync", rustix::fs::fdatasync(&self.file).map_err(io::Error::from))
    }

    fn size(&self) -> DeviceResult<u64> {
        self.run("size", self.file.metadata().map(|metadata| metadata.len()))
    }
}

/// A data folder that is only looked at: every operation that would change something fails.
#[derive(Clone, Debug)]
pub struct ReadOnlyDevice {
    device: FileDevice,
}

impl ReadOnlyDevice {
    /// The folder at `root`.
    ///
    /// # Errors
    /// If there is none, or it cannot be listed.
    pub fn open(root: &Path) -> DeviceResult<ReadOnlyDevice> {
        let device = FileDevice { root: root.to_owned() };
        device.list("")?;
        Ok(ReadOnlyDevice { device })
    }

    fn refuse<T>(operation: &'static str, path: &str) -> DeviceResult<T> {
        Err(DeviceError::Failed { operation, path: path.to_owned(), reason: "the folder is only looked at".to_owned() })
    }
}

impl LogDevice for ReadOnlyDevice {
    fn create_dir(&self, path: &str) -> DeviceResult<()> {
        ReadOnlyDevice::refuse("create folder", path)
    }

    fn list(&self, path: &str) -> DeviceResult<Vec<String>> {
        self.device.list(path)
    }

    fn create(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        ReadOnlyDevice::refuse("create", path)
    }

    fn open(&self, path: &str) -> DeviceResult<Arc<dyn DeviceFile>> {
        self.device.open_with("open", path, OpenOptions::new().read(true))
    }

    fn rename(&self, from: &str, _: &str) -> DeviceResult<()> {
        ReadOnlyDevice::refuse("rename", from)
    }

    fn remove(&self, path: &str) -> DeviceResult<()> {
        ReadOnlyDevice::refuse("remove", path)
    }

    fn remove_dir_all(&self, path: &str) -> DeviceResult<()> {
        ReadOnlyDevice::refuse("remove folder", path)
    }

    fn sync_dir(&self, path: &str) -> DeviceResult<()> {
        ReadOnlyDevice::refuse("sync folder", path)
    }
}

/// Why a data folder could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the data folder {0} is in use by another process")]
    Taken(PathBuf),
    /// The file system failed.
    #[error("cannot lock {path}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Keeps other processes out of a data folder until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct FolderLock {
    /// `None`: there is no lock file, so no server ever took the folder.
    _file: Option<File>,
}

impl FolderLock {
    /// Takes the lock of the data folder of `device`.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn acquire(device: &FileDevice) -> Result<FolderLock, LockError> {
        let path = device.root.join(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| LockError::Io { path: path.clone(), source })?;
        FolderLock::lock(&device.root, path, file)
    }

    /// Takes the lock without writing anything, for those who only look.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn borrow(device: &ReadOnlyDevice) -> Result<FolderLock, LockError> {
        let root = &device.device.root;
        let path = root.join(LOCK_FILE);
        match File::open(&path) {
            Ok(file) => FolderLock::lock(root, path, file),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(FolderLock { _file: None }),
            Err(source) => Err(LockError::Io { path, source }),
        }
    }

    fn lock(root: &Path, path: PathBuf, file: File) -> Result<FolderLock, LockError> {
        match file.try_lock() {
            Ok(()) => Ok(FolderLock { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(LockError::Taken(root.to_owned())),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_belongs_to_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let device = FileDevice::open(&dir.path().join("a/b/data")).unwrap();
        let lock = FolderLock::acquire(&device).unwrap();
        assert!(matches!(FolderLock::acquire(&device), Err(LockError::Taken(_))));
        let reader = ReadOnlyDevice::open(device.root()).unwrap();
        assert!(matches!(FolderLock::borrow(&reader), Err(LockError::Taken(_))));
        drop(lock);
        let borrowed = FolderLock::borrow(&reader).unwrap();
        assert!(matches!(FolderLock::acquire(&device), Err(LockError::Taken(_))), "no server starts meanwhile");
        drop(borrowed);
        FolderLock::acquire(&device).unwrap();
    }

    #[test]
    fn folder_that_is_only_looked_at_is_never_changed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        let device = ReadOnlyDevice::open(dir.path()).unwrap();
        assert!(FolderLock::borrow(&device).is_ok(), "without a lock file nobody has it");
        let file = device.open("a").unwrap();
        assert_eq!(file.read(0, 9).unwrap(), b"x");
        assert!(file.write(0, b"y").is_err());
        assert!(device.create("b").is_err() && device.create_dir("c").is_err());
        assert!(device.rename("a", "b").is_err() && device.remove("a").is_err() && device.remove_dir_all("a").is_err());
        assert_eq!(device.list("").unwrap(), ["a"]);
        assert!(ReadOnlyDevice::open(&dir.path().join("nothing")).is_err());
    }

    #[test]
    fn real_files_behave_as_the_ones_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let real = FileDevice::open(dir.path()).unwrap();
        let memory = corral_core::storage::log_device::MemoryDevice::new();
        let mut seen = Vec::new();
        for device in [&real as &dyn LogDevice, &memory] {
            let mut log: Vec<String> = Vec::new();
            let mut note = |what: String| log.push(what);
            // Errors are compared by kind: paths differ.
            let kind = |result: DeviceResult<()>| match result {
                Ok(()) => "ok",
                Err(DeviceError::NotFound { .. }) => "not found",
                Err(_) => "failed",
            };
            note(kind(device.remove("a")).into());
            note(kind(device.open("a").map(drop)).into());
            note(kind(device.list("d").map(drop)).into());
            note(kind(device.remove_dir_all("d")).into());
            device.create_dir("d").unwrap();
            device.create_dir("d").unwrap();
            let file = device.create("d/a").unwrap();
            note(kind(device.create("d/a").map(drop)).into());
            file.write(10, b"hello").unwrap();
            file.write(3, b"x").unwrap();
            file.sync().unwrap();
            note(format!("{:?} {}", file.read(2, 100).unwrap(), file.size().unwrap()));
            note(format!("{:?}", file.read(100, 1).unwrap()));
            device.create("d/b").unwrap().write(0, b"b").unwrap();
            device.rename("d/a", "d/b").unwrap();
            device.sync_dir("d").unwrap();
            note(format!("{:?}", device.list("d").unwrap()));
            note(kind(device.rename("d/a", "d/c")).into());
            device.rename("d", "e").unwrap();
            device.sync_dir("").unwrap();
            note(format!("{:?}", device.open("e/b").unwrap().read(0, 4).unwrap()));
            device.remove_dir_all("e").unwrap();
            note(format!("{:?}", device.list("").unwrap()));
            seen.push(log);
        }
        assert_eq!(seen[0], seen[1]);
        assert!(seen[0].contains(&"not found".to_owned()));
    }
}
