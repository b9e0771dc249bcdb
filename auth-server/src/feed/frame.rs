//! Events of the feed in the form in which they travel. One is made for each thing published, and every follower's
//! connection sends that same memory: a thousand agents do not make a thousand copies of a policy.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http_body_util::StreamBody;
use hyper::body::Frame as BodyFrame;
use iap_proto::v1::{self, feed_event::Event};
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Response, Status};

/// In front of a message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// One event, with the prefix that gRPC gives it. Clones share the bytes.
#[derive(Clone, Debug)]
pub struct Frame(Bytes);

/// The event is longer than gRPC can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of {bytes} bytes is too long for the feed")]
pub struct FrameTooLong {
    bytes: usize,
}

/// What a follower reads: events, and at last the reason for the end.
pub type Frames = ReceiverStream<Result<Frame, Status>>;

/// The stream that generated code knows. It stays empty: the answer carries [`Frames`] in its place.
pub type NoEvents = tokio_stream::Empty<Result<v1::FeedEvent, Status>>;

/// Frames on their way from a handler to [`unpack`].
#[derive(Clone)]
struct Packed(Arc<Mutex<Option<Frames>>>);

impl Frame {
    /// The event as it travels.
    pub fn of(event: Event) -> Result<Self, FrameTooLong> {
        let message = v1::FeedEvent { event: Some(event) };
        let bytes = message.encoded_len();
        let length = u32::try_from(bytes).map_err(|_| FrameTooLong { bytes })?;
        let mut framed = BytesMut::with_capacity(PREFIX_BYTES + bytes);
        framed.put_u8(0);
        framed.put_u32(length);
        message.encode_raw(&mut framed);
        Ok(Self(framed.freeze()))
    }
}

/// A handler's answer that will send those frames.
pub fn pack(frames: Frames) -> Response<NoEvents> {
    let mut answer = Response::new(tokio_stream::empty());
    let packed = Packed(Arc::new(Mutex::new(Some(frames))));
    answer.extensions_mut().insert(packed);
    answer
}

/// Puts the frames of a [`pack`]ed answer in the place of its body. Other answers pass unchanged.
pub fn unpack(mut answer: http::Response<Body>) -> http::Response<Body> {
    let packed = answer.extensions_mut().remove::<Packed>();
    let frames = packed.and_then(|packed| packed.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    match frames {
        Some(frames) => answer.map(|_| body(frames)),
        None => answer,
    }
}

fn body(frames: Frames) -> Body {
    let sent = frames.map(|event| match event {
        Ok(Frame(bytes)) => Ok::<_, Status>(BodyFrame::data(bytes)),
        Err(end) => {
            let mut trailers = http::HeaderMap::new();
            end.add_header(&mut trailers)?;
            Ok(BodyFrame::trailers(trailers))
        }
    });
    Body::new(StreamBody::new(sent))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;

    use super::*;

    fn event(payload: &[u8]) -> Event {
        Event::Beat(v1::Signed {
            payload: payload.to_vec(),
            ..v1::Signed::default()
        })
    }

    #[test]
    fn a_frame_is_the_event_behind_its_length() {
        let Frame(bytes) = Frame::of(event(b"now")).unwrap();
        let (prefix, message) = bytes.split_at(PREFIX_BYTES);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        assert_eq!(prefix, [&[0], length.as_slice()].concat());
        let decoded = v1::FeedEvent::decode(message).unwrap();
        assert_eq!(decoded.event, Some(event(b"now")));
    }

    #[tokio::test]
    async fn followers_send_the_same_memory_and_end_with_their_status() {
        let frame = Frame::of(event(&[7; 100_000])).unwrap();
        let mut sent = Vec::new();
        for _ in 0..2 {
            let (sender, frames) = mpsc::channel(2);
            sender.send(Ok(frame.clone())).await.unwrap();
            sender
                .send(Err(Status::permission_denied("locked")))
                .await
                .unwrap();
            drop(sender);
            let answer = pack(ReceiverStream::new(frames));
            let answer = http::Response::from_parts(
                {
                    let mut parts = http::Response::new(()).into_parts().0;
                    parts.extensions = answer.extensions().clone();
                    parts
                },
                Body::empty(),
            );
            let mut body = unpack(answer).into_body();
            sent.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
            let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(trailers.get("grpc-status").unwrap(), "7");
            assert!(body.frame().await.is_none());
        }
        assert!(sent.iter().all(|bytes| bytes.as_ptr() == frame.0.as_ptr()));
    }
}
