//! Where media is kept beyond memory: a directory or an S3 store, behind one interface.
//!
//! Objects appear whole or not at all and are never changed by halves; what they mean is up to `recording`. Nothing
//! here is called by a stream's worker: writing happens on threads of its own, so that a slow disk holds up nobody.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use crate::config::Config;

/// One request to an S3 store may take so long; a segment of ten seconds of 4K video is 30 MB.
const REQUEST_MAX: Duration = Duration::from_secs(20);
/// A request that fails is tried again for so long. The queue in front of a recording holds about as much.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Media is read in slices of this size: what a client that stops reading holds.
const SLICE_BYTES: u64 = 512 * 1024;
/// In a directory, the file that tells other processes that somebody writes there.
const LOCK: &str = ".lock";
/// Listing and deleting go so many objects at a time.
const PARALLEL: usize = 8;

/// Why something could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The configured place does not exist and cannot be made, or is no valid S3 address.
    #[error("storage {target}: {reason}")]
    Unusable {
        /// The configured place.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] object_store::Error),
    /// There is less room than configured to be left free.
    #[error("only {free} bytes are free, and {min} are to stay so")]
    Full {
        /// What is free.
        free: u64,
        /// `storage_free_bytes_min`.
        min: u64,
    },
    /// What was read is not what was written.
    #[error("{name} is damaged: {reason}")]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// See the module.
pub(crate) struct Storage {
    store: Arc<dyn ObjectStore>,
    /// In front of all names.
    prefix: Path,
    /// Where it is a directory of this machine.
    directory: Option<PathBuf>,
    /// Held as long as no other process may write there.
    lock: Option<File>,
    free_bytes_min: u64,
    /// Threads for writing and upkeep; taken by `drop`.
    runtime: Mutex<Option<Runtime>>,
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Storage {
    /// Opens the place `target`: a directory, which is made if need be, or `s3://BUCKET/PREFIX`.
    pub(crate) fn open(target: &str, config: &Config) -> Result<Self, StorageError> {
        let unusable = |reason: String| StorageError::Unusable { target: target.to_owned(), reason };
        let (store, prefix, directory): (Arc<dyn ObjectStore>, Path, Option<PathBuf>) =
            if let Some(address) = target.strip_prefix("s3://") {
                let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
                let store = s3(bucket, config).map_err(|error| unusable(error.to_string()))?;
                (Arc::new(store), Path::from(prefix), None)
            } else {
                std::fs::create_dir_all(target).map_err(|error| unusable(error.to_string()))?;
                let store =
                    LocalFileSystem::new_with_prefix(target).map_err(|error| unusable(error.to_string()))?;
                (Arc::new(store), Path::default(), Some(PathBuf::from(target)))
            };
        let lock = directory.as_ref().and_then(|directory| {
            let file = File::create(directory.join(LOCK)).ok()?;
            file.try_lock().ok().map(|()| file)
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // Waiting is most of the work, and blocking calls have threads of their own.
            .worker_threads(1)
            .thread_name("storage")
            .enable_all()
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let free_bytes_min = config.storage_free_bytes_min;
        Ok(Self { store, prefix, directory, lock, free_bytes_min, runtime: Mutex::new(Some(runtime)) })
    }

    /// Whether nobody but this process writes there, so that all that is unfinished is our own.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.lock.is_some()
    }

    /// When something below `folder` was last written, in milliseconds since the Unix epoch.
    pub(crate) async fn written_ms(&self, folder: &str) -> Result<i64, StorageError> {
        let written =
            self.store.list(Some(&self.path(folder))).map_ok(|meta| meta.last_modified.timestamp_millis());
        Ok(written.try_fold(0, async |newest, ms| Ok(ms.max(newest))).await?)
    }

    /// Runs a task on the storage's threads.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &*self.runtime.lock() {
            runtime.spawn(task);
        }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Writes an object: whole, or not at all.
    pub(crate) async fn put(&self, name: &str, chunks: Vec<Bytes>) -> Result<(), StorageError> {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        let written = self.store.put(&self.path(name), PutPayload::from_iter(chunks)).await;
        match written {
            Ok(_) => metrics::counter!("storage_written_bytes_total").increment(bytes as u64),
            Err(_) => metrics::counter!("storage_errors_total").increment(1),
        }
        Ok(written.map(|_| ())?)
    }

    /// Reads a small object; none where it does not exist.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads part of an object, a slice at a time as it is taken.
    pub(crate) fn read(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes, StorageError>> {
        let (store, path) = (self.store.clone(), self.path(name));
        let slices = range.clone().step_by(SLICE_BYTES as usize);
        stream::iter(slices)
            .then(move |start| {
                let (store, path) = (store.clone(), path.clone());
                let slice = start..range.end.min(start + SLICE_BYTES);
                async move {
                    let bytes = store.get_range(&path, slice.clone()).await?;
                    if bytes.len() as u64 == slice.end - slice.start {
                        Ok(bytes)
                    } else {
                        let reason = "it is shorter than it was".to_owned();
                        Err(StorageError::Damaged { name: path.to_string(), reason })
                    }
                }
            })
            .boxed()
    }

    /// The names of the objects below `folder`, relative to it, sorted.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let path = self.path(folder);
        let depth = path.parts().count();
        let relative = |meta: object_store::ObjectMeta| {
            let parts: Vec<_> =
                meta.location.parts().skip(depth).map(|part| part.as_ref().to_owned()).collect();
            parts.join("/")
        };
        let mut names: Vec<String> = self.store.list(Some(&path)).map_ok(relative).try_collect().await?;
        names.sort();
        Ok(names)
    }

    /// The names of the folders in `folder`; `""` is the top.
    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let path = if folder.is_empty() { self.prefix.clone() } else { self.path(folder) };
        let found = self.store.list_with_delimiter(Some(&path)).await?;
        let name = |path: Path| path.filename().map(str::to_owned);
        Ok(found.common_prefixes.into_iter().filter_map(name).collect())
    }

    /// Deletes objects; those that do not exist are no error.
    pub(crate) async fn delete(&self, names: Vec<String>) -> Result<(), StorageError> {
        let paths: Vec<_> = names.iter().map(|name| Ok(self.path(name))).collect();
        let mut deleted = self.store.delete_stream(stream::iter(paths).boxed());
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deletes everything below `folder` but `last`, then `last`: as long as that is there, the rest may be.
    pub(crate) async fn delete_folder(&self, folder: &str, last: &str) -> Result<(), StorageError> {
        let names = self.list(folder).await?;
        let names = names.into_iter().filter(|name| name != last).map(|name| format!("{folder}/{name}"));
        self.delete(names.collect()).await?;
        self.delete(vec![format!("{folder}/{last}")]).await?;
        if let Some(directory) = &self.directory {
            // Also the folders, and what a kill in the middle of a write left behind.
            let folder = directory.join(folder);
            let removed = tokio::task::spawn_blocking(move || {
                let removed = std::fs::remove_dir_all(&folder);
                // The stream's folder, if this was its last recording; otherwise it is refused.
                let _ = folder.parent().map(std::fs::remove_dir);
                removed
            });
            // Nothing there any more is what was wanted.
            let _ = removed.await;
        }
        Ok(())
    }

    /// Whether there is room to write more. Stores that do not say how much they hold always have.
    pub(crate) fn check_room(&self) -> Result<(), StorageError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        // A file system that does not answer this will say itself when it is full.
        let Ok(found) = rustix::fs::statvfs(directory) else { return Ok(()) };
        let (free, min) = (found.f_bavail.saturating_mul(found.f_frsize), self.free_bytes_min);
        metrics::gauge!("storage_free_bytes").set(free as f64);
        if free < min { Err(StorageError::Full { free, min }) } else { Ok(()) }
    }

    /// Reads many small objects at once, in order; missing ones are errors.
    pub(crate) async fn get_all(&self, names: Vec<String>) -> Result<Vec<Bytes>, StorageError> {
        let get = async |name: String| {
            let bytes = self.get(&name).await?;
            bytes.ok_or_else(|| StorageError::Damaged { name, reason: "it is missing".to_owned() })
        };
        stream::iter(names).map(get).buffered(PARALLEL).try_collect().await
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // May happen on a thread of another runtime, or of this one, where waiting is not allowed.
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

fn s3(bucket: &str, config: &Config) -> Result<object_store::aws::AmazonS3, object_store::Error> {
    // The HTTP client takes the process's TLS provider; another service may have chosen the same one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let mut options =
        ClientOptions::new().with_timeout(REQUEST_MAX).with_connect_timeout(Duration::from_secs(5));
    let endpoint = &config.s3_endpoint;
    if !endpoint.is_empty() {
        builder = builder.with_endpoint(endpoint);
        options = options.with_allow_http(endpoint.starts_with("http://"));
    }
    if !config.s3_access_key_id.is_empty() {
        builder = builder
            .with_access_key_id(&config.s3_access_key_id)
            .with_secret_access_key(config.s3_secret_access_key.expose());
    }
    let retry = RetryConfig { max_retries: 5, retry_timeout: RETRY_MAX, ..RetryConfig::default() };
    builder.with_client_options(options).with_retry(retry).build()
}
