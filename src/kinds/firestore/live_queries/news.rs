//! One response of a Listen, read.

use bytes::Bytes;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ListenResponse, listen_response::ResponseType, target_change::TargetChangeType,
};
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::{
    upstream::{TARGET, Upstream},
    view::Kept,
};

/// What a response says about the stream's target.
#[derive(Debug)]
pub(super) enum News {
    /// A document matches, in this state.
    Present(String, Kept),
    /// A document does not exist, or does not match any more.
    Gone(String),
    /// The target itself.
    Target(TargetNews),
    /// So many documents match.
    Count(usize),
    /// Nothing that concerns it.
    Nothing,
}

/// What a change of the target says.
#[derive(Debug)]
pub(super) struct TargetNews {
    pub(super) kind: TargetChangeType,
    /// Empty for none.
    pub(super) token: Bytes,
    /// If the target is consistent, as of when.
    pub(super) read_time: Option<Timestamp>,
    pub(super) cause: Option<Status>,
}

impl News {
    /// Reads a response.
    pub(super) fn of<U: Upstream>(response: ListenResponse, upstream: &U) -> Self {
        let ours = |ids: &[i32]| ids.contains(&TARGET);
        match response.response_type {
            Some(ResponseType::DocumentChange(change)) => match change.document {
                Some(document) if ours(&change.target_ids) => {
                    let (name, updated) = (document.name.clone(), document.update_time);
                    let json = upstream.to_json(document).to_string();
                    Self::Present(name, Kept::new(updated, json.into()))
                }
                Some(document) if ours(&change.removed_target_ids) => Self::Gone(document.name),
                _ => Self::Nothing,
            },
            // There is one target: a list without it can only be one that the server left empty.
            Some(ResponseType::DocumentDelete(delete)) => Self::Gone(delete.document),
            Some(ResponseType::DocumentRemove(remove)) => Self::Gone(remove.document),
            Some(ResponseType::Filter(filter)) if filter.target_id == TARGET => {
                Self::Count(usize::try_from(filter.count).unwrap_or_default())
            }
            Some(ResponseType::TargetChange(change))
                if change.target_ids.is_empty() || ours(&change.target_ids) =>
            {
                let kind = change.target_change_type();
                let cause =
                    change.cause.map(|cause| Status::new(Code::from(cause.code), cause.message));
                let (token, read_time) = (change.resume_token, change.read_time);
                Self::Target(TargetNews { kind, token, read_time, cause })
            }
            _ => Self::Nothing,
        }
    }
}
