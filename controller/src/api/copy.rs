//! Backup: a consistent copy of the database, in pieces.

use super::refusal::of_store;
use super::{Open, OperatorApi, Streamed};
use crate::auth::{Act, Principal, Target, authorize};
use bytes::Bytes;
use firebreak_proto::v1;
use futures::stream;
use std::path::Path;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tonic::Status;

/// Bytes of one piece.
const PIECE: usize = 256 * 1024;

struct Copying {
    file: File,
    _open: Open,
    _only: tokio::sync::OwnedSemaphorePermit,
}

impl OperatorApi {
    pub(super) async fn copy_database(&self, principal: Principal) -> Result<Streamed<v1::BackupChunk>, Status> {
        authorize(&principal, Act::Backup, Target::Everything)?;
        let open = self.open_stream()?;
        let only = std::sync::Arc::clone(&self.backups)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("another backup is under way; try again when it is done"))?;
        let path = self.store.folder().join(format!(".backup-{}.db", uuid::Uuid::new_v4().simple()));
        self.store.backup(path.clone()).await.map_err(|error| of_store(&error))?;
        let opened = open_and_unlink(&path).await;
        let file = opened.map_err(|error| Status::internal(format!("cannot read the copy {}: {error}", path.display())))?;
        tracing::info!(principal = %principal, "began a backup");
        let copying = Copying { file, _open: open, _only: only };
        let chunks = stream::try_unfold(copying, |mut copying| async move {
            let mut piece = vec![0; PIECE];
            let mut filled = 0;
            while filled < PIECE {
                let read = copying.file.read(&mut piece[filled..]).await;
                match read.map_err(|error| Status::internal(format!("cannot read the copy: {error}")))? {
                    0 => break,
                    count => filled += count,
                }
            }
            piece.truncate(filled);
            Ok((filled > 0).then(|| (v1::BackupChunk { data: Bytes::from(piece) }, copying)))
        });
        Ok(self.until_stopped(chunks))
    }
}

/// The copy has no name any more once it is open: whatever happens, the disk space comes back.
async fn open_and_unlink(path: &Path) -> std::io::Result<File> {
    let opened = File::open(path).await;
    tokio::fs::remove_file(path).await?;
    opened
}
