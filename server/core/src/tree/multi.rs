//! Several operations under one zxid, all or nothing (wire 3.4).

use corral_proto::ErrorCode;

use super::execute::{Exec, Who};
use super::op::{Answer, MultiOp};
use super::{TreeView, read};

impl<V: TreeView> Exec<'_, V> {
    /// Runs the operations in order, each on what the earlier ones left. The first that fails undoes them all; that is
    /// an answer, too, not an error of the request.
    ///
    /// # Errors
    /// `MarshallingError` if there is an operation in it that only ClickHouse Keeper has, and the settings do not allow
    /// these: ZooKeeper cannot read such a multi.
    pub(super) fn multi(&mut self, ops: &[MultiOp], who: &Who<'_>) -> Result<Answer, ErrorCode> {
        if ops.iter().any(MultiOp::is_extension) && !read::has_keeper_extensions(&self.view) {
            return Err(ErrorCode::MarshallingError);
        }
        let all = self.all_or_nothing(|exec| {
            let mut answers = Vec::with_capacity(ops.len());
            for (index, op) in ops.iter().enumerate() {
                answers.push(exec.multi_op(op, who).map_err(|error| (index, error))?);
            }
            Ok(answers)
        });
        Ok(match all {
            Ok(answers) => Answer::Multi(answers),
            Err((failed, error)) => Answer::MultiFailed { ops: ops.len(), failed, error },
        })
    }

    fn multi_op(&mut self, op: &MultiOp, who: &Who<'_>) -> Result<Answer, ErrorCode> {
        match op {
            MultiOp::Create(op) => self.create(op, who),
            MultiOp::Delete { path, version } => self.delete(path, *version, who),
            MultiOp::SetData { path, data, version } => self.set_data(path, data.as_ref(), *version, who),
            MultiOp::Check { path, version } => self.check(path, *version, who),
            MultiOp::CreateIfNotExists(op) => self.create_if_not_exists(op, who),
            MultiOp::RemoveRecursive { path, limit } => self.remove_recursive(path, *limit, who),
            MultiOp::CheckNotExists { path, version } => {
                read::check_not_exists(&self.view, path, *version, who.ids())?;
                Ok(Answer::Done)
            }
        }
    }
}
