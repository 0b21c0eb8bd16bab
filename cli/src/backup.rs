//! `firebreak backup`.

use crate::args::BackupArgs;
use crate::client::{Client, refusal};
use crate::output::print;
use anyhow::Context as _;
use firebreak_proto::v1;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes beside the target first, so that a copy cut short never carries the target's name.
pub(crate) async fn run(client: &mut Client, arguments: BackupArgs) -> anyhow::Result<ExitCode> {
    let target = arguments.file;
    if target.try_exists().with_context(|| format!("cannot look at {}", target.display()))? {
        anyhow::bail!("{} exists; name a file that does not, nothing is overwritten", target.display());
    }
    let partial = partial_name(&target)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .with_context(|| format!("cannot create {}", partial.display()))?;
    let outcome = copy(client, &mut file, &partial).await;
    if outcome.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    let bytes = outcome?;
    std::fs::rename(&partial, &target).with_context(|| format!("cannot rename {} to {}", partial.display(), target.display()))?;
    print(&format!(
        "{} written, {bytes} bytes; restore with: firebreak-controller restore --from {}\n",
        target.display(),
        target.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn partial_name(target: &Path) -> anyhow::Result<PathBuf> {
    let name = target.file_name().with_context(|| format!("{} names no file", target.display()))?;
    let mut partial = name.to_owned();
    partial.push(".partial");
    Ok(target.with_file_name(partial))
}

async fn copy(client: &mut Client, file: &mut File, path: &Path) -> anyhow::Result<u64> {
    let mut chunks =
        client.operator().await?.backup(v1::BackupRequest {}).await.map_err(|status| refusal("no backup was made", &status))?.into_inner();
    let mut bytes = 0_u64;
    while let Some(chunk) = chunks.message().await.map_err(|status| refusal("the backup broke off", &status))? {
        file.write_all(&chunk.data).with_context(|| format!("cannot write {}", path.display()))?;
        bytes += u64::try_from(chunk.data.len())?;
    }
    anyhow::ensure!(bytes > 0, "the controller sent an empty backup");
    file.sync_all().with_context(|| format!("cannot flush {} to disk", path.display()))?;
    Ok(bytes)
}
