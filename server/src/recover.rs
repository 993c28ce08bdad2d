//! What an operator may force on a stopped server: `corral recover`.

use corral_core::storage::recover::accept_data_loss;
use corral_proto::Zxid;
use tracing::info;

use crate::config::Config;
use crate::node::{StartError, number, system_random};
use crate::storage::files::{FileDevice, FolderLock};

/// Makes a stopped server the origin of a new cluster that goes on from its log: the only way out when a majority of the
/// data folders is lost for good (P9). What the others acknowledged and this one never got is gone.
/// Returns the last zxid of the log that is kept; what of it was never committed counts as committed from now on.
///
/// Blocks: it reads the retained log.
///
/// # Errors
/// [`StartError::Lock`] while the server runs; [`StartError::Recover`] if the folder holds nothing of a member, is
/// damaged, or belongs to another server; others if the folder cannot be used.
pub fn keep_this_copy(config: &Config) -> Result<Zxid, StartError> {
    let folder = FileDevice::open(&config.data_dir)?;
    let _lock = FolderLock::acquire(&folder)?;
    let random: [u8; 8] = system_random().map_err(StartError::Random)?;
    let cluster = number(&random) | 1;
    let end = accept_data_loss(&folder, config.my_id, cluster)?;
    info!(zxid = %end.zxid, cluster = %format_args!("{cluster:#x}"), "this copy is the origin of a new cluster");
    Ok(end.zxid)
}
