//! A server that answers everything at once and stores nothing: what client and loopback cost, and so the ceiling of
//! every other figure.

use bytes::{Buf, BytesMut};
use clap::Args;
use corral_proto::Stat;
use corral_proto::jute::{
    ConnectRequest, ConnectResponse, ReplyHeader, RequestHeader, Response, encode_reply, frame, opcode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::wire::FRAME_BYTES_MAX;
use crate::{Result, context, workload};

/// Bytes of the value that every read gets.
const VALUE_BYTES: usize = 100;

/// Where it listens.
#[derive(Args, Clone, Debug)]
pub struct NullArgs {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT")]
    listen: String,
}

/// Serves until the process ends.
///
/// # Errors
/// If it cannot listen.
pub async fn serve(args: &NullArgs) -> Result<()> {
    let listener = TcpListener::bind(&args.listen).await.map_err(context(&args.listen))?;
    let mut session_id = 0;
    loop {
        let (stream, _) = listener.accept().await?;
        session_id += 1;
        // A client that breaks off has nobody to tell.
        tokio::spawn(async move { _ = answer(stream, session_id).await });
    }
}

async fn answer(mut stream: TcpStream, session_id: i64) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut received = BytesMut::with_capacity(64 << 10);
    let mut out = BytesMut::with_capacity(64 << 10);
    let mut first = true;
    let stat = Stat::default();
    let value = Response::Data { data: Some(workload::value(VALUE_BYTES)), stat };
    loop {
        received.reserve(64 << 10);
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
        if first && received.starts_with(b"srvr") {
            stream.write_all(b"Mode: standalone\n").await?;
            return Ok(());
        }
        while let Some(length) = frame::announced(&received, FRAME_BYTES_MAX)? {
            if received.len() < frame::PREFIX_BYTES + length {
                break;
            }
            if first {
                first = false;
                let payload = frame::split(&mut received, FRAME_BYTES_MAX)?.expect("it is complete");
                let request = ConnectRequest::decode(payload)?;
                ConnectResponse {
                    timeout_ms: request.timeout_ms,
                    session_id,
                    ..ConnectResponse::expired(request.read_only)
                }
                .encode(&mut out);
                continue;
            }
            let payload = &received[frame::PREFIX_BYTES..frame::PREFIX_BYTES + length];
            let header = payload.first_chunk::<8>().ok_or("a request without a header")?;
            let (mut xid, mut code) = (&header[..4], &header[4..]);
            let header = RequestHeader { xid: xid.get_i32(), opcode: code.get_i32() };
            received.advance(frame::PREFIX_BYTES + length);
            let reply = ReplyHeader { xid: header.xid, zxid: 1, err: 0 };
            match header.opcode {
                opcode::GET_DATA => encode_reply(reply, Some(&value), &mut out),
                opcode::SET_DATA | opcode::EXISTS => encode_reply(reply, Some(&Response::Stat(stat)), &mut out),
                opcode::CREATE | opcode::SYNC => encode_reply(reply, Some(&Response::Path("/".to_owned())), &mut out),
                opcode::GET_CHILDREN => encode_reply(reply, Some(&Response::Names(Vec::new())), &mut out),
                opcode::MULTI => encode_reply(reply, Some(&Response::Multi(Vec::new())), &mut out),
                _ => encode_reply(reply, None, &mut out),
            }
        }
        stream.write_all_buf(&mut out).await?;
    }
}
