//! Answers and events become frames (wire 3.2, 3.4, 4.2, 7.2).

use bytes::BytesMut;
use corral_core::session::SharedEvent;
use corral_core::tree::op::Answer;
use corral_proto::jute::{ClientInfo, MultiResult, ReplyHeader, Response, encode_event, encode_reply, opcode};
use corral_proto::{ErrorCode, Id, Zxid};

use super::request::{Form, MultiForm};

/// What becomes of the connection after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Open,
    /// Nothing may be sent after what was encoded.
    Close,
}

/// Appends the reply to request `xid`.
///
/// `zxid` is that of the answer; what the header shows follows the form. A moved session gets no reply at all.
pub fn reply(xid: i32, form: Form, zxid: Zxid, result: Result<Answer, ErrorCode>, out: &mut BytesMut) -> Next {
    if result == Err(ErrorCode::SessionMoved) {
        return Next::Close;
    }
    let form = match form {
        // As if nobody had ever heard of it.
        Form::Extension(_) if result == Err(ErrorCode::Unimplemented) => Form::Unimplemented,
        Form::Extension(form) => *form,
        form => form,
    };
    let xid = if form == Form::Ping { opcode::XID_PING } else { xid };
    // Whoever must prove who it is first is told so in place of any answer (wire 6.5).
    let barred = result == Err(ErrorCode::SessionClosedRequireSaslAuth);
    let zxid = match form {
        Form::Auth | Form::Sasl => 0,
        _ if barred => 0,
        Form::Unimplemented => -1,
        _ => zxid.as_i64(),
    };
    let next = match (&form, &result) {
        (Form::Unimplemented, _) | (Form::Auth | Form::Sasl, Err(_)) => Next::Close,
        _ if barred => Next::Close,
        _ => Next::Open,
    };
    let body = if let (Form::Sasl, Err(code)) = (&form, &result) {
        Err((*code, Some(Response::Token(None))))
    } else if form == Form::MultiReadRefused && !barred {
        Err((ErrorCode::MarshallingError, Some(Response::Multi(Vec::new()))))
    } else {
        result.and_then(|answer| body(form, answer)).map_err(|code| (code, None))
    };
    match body {
        Ok(body) => encode_reply(ReplyHeader { xid, zxid, err: 0 }, Some(&body), out),
        Err((code, body)) => encode_reply(ReplyHeader { xid, zxid, err: code.code() }, body.as_ref(), out),
    }
    next
}

/// Appends a watch event; the frame is made once for all connections.
pub fn event(shared: &SharedEvent, out: &mut BytesMut) {
    let frame = shared.wire.get_or_init(|| {
        let mut frame = BytesMut::new();
        encode_event(&shared.event, &mut frame);
        frame.freeze()
    });
    out.extend_from_slice(frame);
}

/// The body of a successful reply. An answer that does not fit its request is a bug elsewhere; the client is told so
/// instead of being sent bytes it would misread.
fn body(form: Form, answer: Answer) -> Result<Response, ErrorCode> {
    Ok(match (form, answer) {
        (Form::Header | Form::Ping | Form::Closed | Form::Auth, Answer::Done) => Response::Empty,
        (Form::Sasl, Answer::Token(token)) => Response::Token(token),
        (Form::Path, Answer::Created { path, .. }) => Response::Path(path),
        (Form::PathStat, Answer::Created { path, stat }) => Response::PathStat { path, stat },
        (Form::Stat, Answer::Stat(stat)) => Response::Stat(stat),
        (Form::Data, Answer::Data { data, stat }) => Response::Data { data, stat },
        (Form::Acl, Answer::Acl { acl, stat }) => Response::Acl { acl, stat },
        (Form::Children, Answer::Children { children, .. }) => Response::Names(children),
        (Form::ChildrenStat, Answer::Children { children, stat }) => Response::NamesStat { names: children, stat },
        (Form::ChildrenStat, Answer::Listing { children, stat, .. }) => Response::NamesStat { names: children, stat },
        (Form::Listing, Answer::Listing { children, stat, stats, data }) => {
            Response::Listing { names: children, stat, stats, data }
        }
        (Form::Sync(path), Answer::Done) => Response::Path(path.into_string()),
        (Form::Multi(forms), Answer::Multi(answers)) if forms.len() == answers.len() => {
            let results = forms.iter().zip(answers).map(|(form, answer)| multi_result(*form, answer));
            Response::Multi(results.collect::<Result<_, _>>()?)
        }
        (Form::Multi(forms), Answer::MultiFailed { failed, error, .. }) => {
            let code = |index: usize| match index.cmp(&failed) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => error.code(),
                std::cmp::Ordering::Greater => ErrorCode::RuntimeInconsistency.code(),
            };
            Response::Multi((0..forms.len()).map(|index| MultiResult::Error(code(index))).collect())
        }
        (Form::MultiRead, Answer::MultiRead(results)) => {
            Response::Multi(results.into_iter().map(read_result).collect::<Result<_, _>>()?)
        }
        (Form::Paths, Answer::Paths(paths)) => Response::Names(paths),
        (Form::Count, Answer::Count(count)) => Response::Count(i32::try_from(count).unwrap_or(i32::MAX)),
        (Form::WatchAdded, Answer::Done) => Response::Error(0),
        (Form::Identities, Answer::Ids(ids)) => Response::Identities(ids.into_iter().map(identity).collect()),
        (form, answer) => {
            tracing::error!(?form, ?answer, "answer does not fit its request");
            return Err(ErrorCode::SystemError);
        }
    })
}

fn multi_result(form: MultiForm, answer: Answer) -> Result<MultiResult, ErrorCode> {
    Ok(match (form, answer) {
        (MultiForm::Create, Answer::Created { path, .. }) => MultiResult::Create { path },
        (MultiForm::Create2, Answer::Created { path, stat }) => MultiResult::Create2 { path, stat },
        (MultiForm::Delete, Answer::Done) => MultiResult::Delete,
        (MultiForm::SetData, Answer::Stat(stat)) => MultiResult::SetData(stat),
        (MultiForm::Check, Answer::Done) => MultiResult::Check,
        (MultiForm::CreateIfNotExists, Answer::Created { path, .. }) => {
            MultiResult::Keeper(opcode::CREATE_IF_NOT_EXISTS, Box::new(Response::Path(path)))
        }
        (MultiForm::RemoveRecursive, Answer::Done) => {
            MultiResult::Keeper(opcode::REMOVE_RECURSIVE, Box::new(Response::Empty))
        }
        (MultiForm::CheckNotExists, Answer::Done) => {
            MultiResult::Keeper(opcode::CHECK_NOT_EXISTS, Box::new(Response::Empty))
        }
        (form, answer) => {
            tracing::error!(?form, ?answer, "answer does not fit its operation");
            return Err(ErrorCode::SystemError);
        }
    })
}

fn read_result(result: Result<Answer, ErrorCode>) -> Result<MultiResult, ErrorCode> {
    Ok(match result {
        Err(code) => MultiResult::Error(code.code()),
        Ok(Answer::Data { data, stat }) => MultiResult::GetData { data, stat },
        Ok(Answer::Children { children, .. }) => MultiResult::GetChildren(children),
        Ok(Answer::Stat(stat)) => MultiResult::Keeper(opcode::EXISTS, Box::new(Response::Stat(stat))),
        Ok(Answer::Listing { children, stat, stats, data }) if stats.is_empty() && data.is_empty() => {
            MultiResult::Keeper(opcode::GET_CHILDREN2, Box::new(Response::NamesStat { names: children, stat }))
        }
        Ok(Answer::Listing { children, stat, stats, data }) => {
            let body = Response::Listing { names: children, stat, stats, data };
            MultiResult::Keeper(opcode::LIST_WITH_STAT_AND_DATA, Box::new(body))
        }
        Ok(answer) => {
            tracing::error!(?answer, "answer does not fit a multi-read");
            return Err(ErrorCode::SystemError);
        }
    })
}

/// An identity without its secret: of `user:hash` only the user is shown.
fn identity(id: Id) -> ClientInfo {
    let user = match (id.scheme.as_str(), id.id.split_once(':')) {
        ("digest", Some((user, _))) => user.to_owned(),
        _ => id.id,
    };
    ClientInfo { scheme: id.scheme, user }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use corral_proto::jute::{Reader, decode_reply};
    use corral_proto::{Acl, EventKind, Stat, WatchedEvent};

    use super::*;

    const ZXID: Zxid = Zxid(0x36);

    fn stat() -> Stat {
        Stat { czxid: 1, mzxid: 2, version: 3, ..Stat::default() }
    }

    /// Header and body of one reply, and what follows.
    fn get(form: Form, result: Result<Answer, ErrorCode>) -> (ReplyHeader, Reader, Next) {
        let mut out = BytesMut::new();
        let next = reply(9, form, ZXID, result, &mut out);
        assert_eq!(out[..4], u32::try_from(out.len() - 4).unwrap().to_be_bytes());
        let (header, body) = decode_reply(out.split_off(4).freeze()).unwrap();
        (header, body, next)
    }

    fn body_of(form: Form, opcode: i32, answer: Answer) -> Response {
        let (header, mut body, next) = get(form, Ok(answer));
        assert_eq!(header, ReplyHeader { xid: 9, zxid: 0x36, err: 0 });
        assert_eq!(next, Next::Open);
        let response = Response::decode(opcode, &mut body).unwrap();
        assert_eq!(body.remaining(), 0, "ClickHouse reads replies to the byte");
        response
    }

    #[test]
    fn the_same_answer_is_written_as_the_opcode_wants() {
        let created = Answer::Created { path: "/a".into(), stat: stat() };
        assert_eq!(body_of(Form::Path, 1, created.clone()), Response::Path("/a".into()));
        assert_eq!(body_of(Form::PathStat, 15, created), Response::PathStat { path: "/a".into(), stat: stat() });
        let children = Answer::Children { children: vec!["b".into()], stat: stat() };
        assert_eq!(body_of(Form::Children, 8, children.clone()), Response::Names(vec!["b".into()]));
        assert_eq!(
            body_of(Form::ChildrenStat, 12, children),
            Response::NamesStat { names: vec!["b".into()], stat: stat() }
        );
        assert_eq!(body_of(Form::Stat, 3, Answer::Stat(stat())), Response::Stat(stat()));
        let data = Answer::Data { data: None, stat: stat() };
        assert_eq!(body_of(Form::Data, 4, data), Response::Data { data: None, stat: stat() });
        let acl = Answer::Acl { acl: Acl::open(), stat: stat() };
        assert_eq!(body_of(Form::Acl, 6, acl), Response::Acl { acl: Acl::open(), stat: stat() });
        assert_eq!(body_of(Form::Sync("/x".into()), 9, Answer::Done), Response::Path("/x".into()));
        assert_eq!(body_of(Form::Paths, 103, Answer::Paths(vec![])), Response::Names(vec![]));
        assert_eq!(body_of(Form::Count, 104, Answer::Count(u64::MAX)), Response::Count(i32::MAX));
        assert_eq!(body_of(Form::WatchAdded, 106, Answer::Done), Response::Error(0));
        assert_eq!(body_of(Form::Header, 2, Answer::Done), Response::Empty);
    }

    #[test]
    fn errors_are_a_header_and_nothing_else() {
        for form in [Form::Path, Form::Stat, Form::Multi(Box::new([])), Form::WatchAdded, Form::Closed] {
            let (header, body, next) = get(form, Err(ErrorCode::NoNode));
            assert_eq!(header, ReplyHeader { xid: 9, zxid: 0x36, err: -101 });
            assert_eq!((body.remaining(), next), (0, Next::Open));
        }
    }

    #[test]
    fn ping_replies_always_have_xid_minus_two() {
        let (header, body, _) = get(Form::Ping, Ok(Answer::Done));
        assert_eq!(header, ReplyHeader { xid: -2, zxid: 0x36, err: 0 });
        assert_eq!(body.remaining(), 0);
    }

    #[test]
    fn auth_replies_have_zxid_zero_and_failure_closes() {
        let (header, _, next) = get(Form::Auth, Ok(Answer::Done));
        assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: 0, err: 0 }, Next::Open));
        let (header, body, next) = get(Form::Auth, Err(ErrorCode::AuthFailed));
        assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: 0, err: -115 }, Next::Close));
        assert_eq!(body.remaining(), 0);
    }

    #[test]
    fn sasl_replies_are_a_token_with_zxid_zero_and_failure_closes_with_a_null_one() {
        for token in [None, Some(Bytes::from_static(b"rspauth=0"))] {
            let (header, mut body, next) = get(Form::Sasl, Ok(Answer::Token(token.clone())));
            assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: 0, err: 0 }, Next::Open));
            assert_eq!(Response::decode(opcode::SASL, &mut body), Ok(Response::Token(token)));
        }
        for code in [ErrorCode::AuthFailed, ErrorCode::SessionClosedRequireSaslAuth] {
            let (header, mut body, next) = get(Form::Sasl, Err(code));
            assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: 0, err: code.code() }, Next::Close));
            assert_eq!(Response::decode(opcode::SASL, &mut body), Ok(Response::Token(None)));
        }
    }

    #[test]
    fn whoever_must_authenticate_first_is_told_so_in_place_of_any_answer() {
        for form in [Form::Data, Form::Ping, Form::Closed, Form::Unimplemented, Form::MultiReadRefused] {
            let xid = if form == Form::Ping { -2 } else { 9 };
            let (header, body, next) = get(form, Err(ErrorCode::SessionClosedRequireSaslAuth));
            assert_eq!((header, next), (ReplyHeader { xid, zxid: 0, err: -124 }, Next::Close));
            assert_eq!(body.remaining(), 0);
        }
    }

    #[test]
    fn unimplemented_has_zxid_minus_one_and_closes() {
        let (header, body, next) = get(Form::Unimplemented, Err(ErrorCode::Unimplemented));
        assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: -1, err: -6 }, Next::Close));
        assert_eq!(body.remaining(), 0);
    }

    #[test]
    fn a_keeper_operation_that_is_switched_off_is_an_unknown_opcode() {
        let of = |form: Form| Form::Extension(Box::new(form));
        let (header, body, next) = get(of(Form::Listing), Err(ErrorCode::Unimplemented));
        assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: -1, err: -6 }, Next::Close));
        assert_eq!(body.remaining(), 0);
        let (header, _, next) = get(of(Form::Header), Err(ErrorCode::NotEmpty));
        assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: 0x36, err: -111 }, Next::Open));
        assert_eq!(body_of(of(Form::Header), opcode::REMOVE_RECURSIVE, Answer::Done), Response::Empty);
        let (names, data) = (vec!["b".to_owned()], vec![Some(Bytes::from_static(b"x"))]);
        let answer = Answer::Listing { children: names.clone(), stat: stat(), stats: vec![stat()], data: data.clone() };
        assert_eq!(
            body_of(of(Form::ChildrenStat), opcode::FILTERED_LIST, answer.clone()),
            Response::NamesStat { names: names.clone(), stat: stat() }
        );
        assert_eq!(
            body_of(of(Form::Listing), opcode::LIST_WITH_STAT_AND_DATA, answer),
            Response::Listing { names, stat: stat(), stats: vec![stat()], data }
        );
    }

    #[test]
    fn unimplemented_by_execution_keeps_the_connection() {
        let (header, _, next) = get(Form::PathStat, Err(ErrorCode::Unimplemented));
        assert_eq!((header, next), (ReplyHeader { xid: 9, zxid: 0x36, err: -6 }, Next::Open));
    }

    #[test]
    fn a_moved_session_gets_no_reply() {
        let mut out = BytesMut::new();
        assert_eq!(reply(1, Form::Stat, ZXID, Err(ErrorCode::SessionMoved), &mut out), Next::Close);
        assert!(out.is_empty());
    }

    #[test]
    fn a_failed_multi_reports_every_operation_under_a_header_without_error() {
        let forms = Form::Multi(Box::new([MultiForm::Create, MultiForm::Delete, MultiForm::Check]));
        let failed = Answer::MultiFailed { ops: 3, failed: 1, error: ErrorCode::BadVersion };
        let codes = vec![MultiResult::Error(0), MultiResult::Error(-103), MultiResult::Error(-2)];
        assert_eq!(body_of(forms, 14, failed), Response::Multi(codes));
    }

    #[test]
    fn a_multi_is_answered_in_the_types_of_its_operations() {
        let forms = Form::Multi(Box::new([
            MultiForm::Create,
            MultiForm::Create2,
            MultiForm::SetData,
            MultiForm::Delete,
            MultiForm::Check,
        ]));
        let created = Answer::Created { path: "/a".into(), stat: stat() };
        let answer = Answer::Multi(vec![created.clone(), created, Answer::Stat(stat()), Answer::Done, Answer::Done]);
        let results = vec![
            MultiResult::Create { path: "/a".into() },
            MultiResult::Create2 { path: "/a".into(), stat: stat() },
            MultiResult::SetData(stat()),
            MultiResult::Delete,
            MultiResult::Check,
        ];
        assert_eq!(body_of(forms, 14, answer), Response::Multi(results));
        assert_eq!(body_of(Form::Multi(Box::new([])), 14, Answer::Multi(vec![])), Response::Multi(vec![]));
    }

    #[test]
    fn a_multi_read_goes_on_after_an_error() {
        let answer = Answer::MultiRead(vec![
            Err(ErrorCode::NoNode),
            Ok(Answer::Data { data: Some(Bytes::new()), stat: stat() }),
            Ok(Answer::Children { children: vec!["b".into()], stat: stat() }),
        ]);
        let results = vec![
            MultiResult::Error(-101),
            MultiResult::GetData { data: Some(Bytes::new()), stat: stat() },
            MultiResult::GetChildren(vec!["b".into()]),
        ];
        assert_eq!(body_of(Form::MultiRead, 22, answer), Response::Multi(results));
    }

    #[test]
    fn a_multi_read_of_changes_is_the_one_error_with_a_body() {
        let (header, mut body, next) = get(Form::MultiReadRefused, Err(ErrorCode::MarshallingError));
        assert_eq!((header.err, next), (-5, Next::Open));
        assert_eq!(Response::decode(opcode::MULTI_READ, &mut body), Ok(Response::Multi(vec![])));
        assert_eq!(body.remaining(), 0);
    }

    #[test]
    fn identities_are_shown_without_their_secrets() {
        let ids = vec![
            Id::new("ip", "::1"),
            Id::new("digest", "bob:fyVmFCwVbTJYrznoSu1koqYEYF0="),
            Id::new("digest", "justuser"),
        ];
        let info = |scheme: &str, user: &str| ClientInfo { scheme: scheme.into(), user: user.into() };
        assert_eq!(
            body_of(Form::Identities, 107, Answer::Ids(ids)),
            Response::Identities(vec![info("ip", "::1"), info("digest", "bob"), info("digest", "justuser")])
        );
    }

    #[test]
    fn an_answer_that_does_not_fit_is_an_error_and_not_garbage() {
        let forms = Form::Multi(Box::new([MultiForm::Delete]));
        for (form, answer) in [
            (Form::Stat, Answer::Done),
            (Form::Header, Answer::Stat(stat())),
            (forms.clone(), Answer::Multi(vec![])),
            (forms, Answer::Multi(vec![Answer::Stat(stat())])),
            (Form::MultiRead, Answer::MultiRead(vec![Ok(Answer::Done)])),
        ] {
            let (header, body, _) = get(form, Ok(answer));
            assert_eq!((header.err, body.remaining()), (-1, 0));
        }
    }

    #[test]
    fn an_event_is_encoded_once_and_appended_to_many() {
        let shared =
            SharedEvent::new(WatchedEvent { kind: EventKind::NodeDeleted, path: "/a".into(), zxid: Some(ZXID) });
        let mut first = BytesMut::new();
        event(&shared, &mut first);
        let encoded = shared.wire.get().unwrap().as_ptr();
        let mut second = BytesMut::new();
        event(&shared, &mut second);
        assert_eq!(first, second);
        assert_eq!(shared.wire.get().unwrap().as_ptr(), encoded);
        let (header, _) = decode_reply(first.split_off(4).freeze()).unwrap();
        assert_eq!(header, ReplyHeader { xid: -1, zxid: 0x36, err: 0 });
    }
}
