//! `edit`: a znode's data in the user's editor, written back only if nobody changed it meanwhile.

use std::io::Write;

use corral_client::ErrorCode;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;
use crate::print::Output;
use crate::run::Runner;

/// What edits if neither `VISUAL` nor `EDITOR` says so.
const EDITOR_DEFAULT: &str = "vi";

/// Edits data. It is written under the version that was read; if that fails, what was typed is kept in a file.
///
/// # Errors
/// `NoNode`; `BadVersion`: somebody was faster; the editor failed.
pub async fn edit(runner: &Runner, path: String) -> Result<(), Failure> {
    let client = runner.session()?;
    let node = runner.ask(client.get(&path)).await?;
    let wrong = |error: std::io::Error| Failure::Other(format!("the file to edit: {error}"));
    let before = node.bytes().to_vec();
    let suffix = if before.trim_ascii_start().starts_with(b"{") { ".json" } else { ".txt" };
    let mut file = tempfile::Builder::new().prefix("zkcli-").suffix(suffix).tempfile().map_err(wrong)?;
    file.write_all(&before).and_then(|()| file.flush()).map_err(wrong)?;
    let editor = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok().filter(|e| !e.is_empty()));
    let editor = editor.unwrap_or_else(|| EDITOR_DEFAULT.to_owned());
    // The terminal's Ctrl-C is the editor's while it runs.
    let _ours = signal(SignalKind::interrupt()).map_err(wrong)?;
    let line = format!("{editor} \"$1\"");
    let status = tokio::process::Command::new("sh").arg("-c").arg(line).arg("sh").arg(file.path()).status().await;
    let status = status.map_err(|error| Failure::Other(format!("{editor}: {error}")))?;
    if !status.success() {
        return Err(Failure::Other(format!("{editor} failed; nothing was written")));
    }
    // Editors replace files as well as writing them: the name counts.
    let mut after = std::fs::read(file.path()).map_err(wrong)?;
    // They end a last line that had no end.
    if after.ends_with(b"\n") && !before.ends_with(b"\n") {
        after.pop();
    }
    if after == before {
        runner.remark("unchanged; nothing was written");
        return Ok(());
    }
    match runner.ask(client.set(&path, after, Some(node.stat.version))).await {
        Ok(stat) => runner.show(&Output::Stat { path, stat, show: false }),
        Err(failure) => {
            let kept = file.keep().map(|(_, path)| path).map_err(|error| wrong(error.error))?;
            runner.remark(&format!("what you typed is kept in {}", kept.display()));
            if let Failure::Refused { code: ErrorCode::BadVersion, .. } = &failure {
                runner.remark("somebody has changed it meanwhile");
            }
            Err(failure)
        }
    }
}
