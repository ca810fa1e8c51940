//! What waits for one viewer's connection: bounded in messages and in bytes, so that a viewer who does not read costs
//! little memory whatever is said to it. The room writes, the viewer's socket reads; a full queue ends the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shoal_tracker_protocol::{Signal, TrackerMessage};
use tokio::sync::mpsc;

use crate::swarm::{Notice, Session};

/// What goes to a viewer's connection. Small, because queues hold it in blocks of 32.
#[derive(Debug)]
pub(super) enum Frame {
    /// The connection now speaks for this session.
    Joined(Session),
    /// A message for this viewer.
    Own(Box<TrackerMessage>),
    /// A message for many.
    Shared(Arc<Notice>),
    /// Close after what came before.
    Close(Goodbye),
}

/// Why the tracker closes a connection: a WebSocket close code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    /// A fatal error was sent, or the viewer has another connection. 1000.
    Done,
    /// The tracker stops. 1001.
    Away,
    /// The viewer was silent or slow. 1008.
    Policy,
}

/// The room's end.
#[derive(Debug)]
pub(super) struct Queue {
    frames: mpsc::Sender<Frame>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// The socket's end.
#[derive(Debug)]
pub(super) struct Frames {
    frames: mpsc::Receiver<Frame>,
    bytes: Arc<AtomicUsize>,
}

/// There is no room, or nobody reads any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// An empty queue.
pub(super) fn new(messages_max: usize, bytes_max: usize) -> (Queue, Frames) {
    let (sender, receiver) = mpsc::channel(messages_max);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { frames: sender, bytes: Arc::clone(&bytes), bytes_max }, Frames { frames: receiver, bytes })
}

impl Queue {
    pub(super) fn try_send(&self, frame: Frame) -> Result<(), Full> {
        // Counted first: the other end may take it at once.
        let weight = frame.weight();
        let before = self.bytes.fetch_add(weight, Ordering::Relaxed);
        if before + weight <= self.bytes_max && self.frames.try_send(frame).is_ok() {
            return Ok(());
        }
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        Err(Full)
    }
}

impl Frames {
    pub(super) async fn recv(&mut self) -> Option<Frame> {
        let frame = self.frames.recv().await;
        self.taken(frame)
    }

    pub(super) fn try_recv(&mut self) -> Option<Frame> {
        let frame = self.frames.try_recv().ok();
        self.taken(frame)
    }

    pub(super) fn close(&mut self) {
        self.frames.close();
    }

    fn taken(&self, frame: Option<Frame>) -> Option<Frame> {
        if let Some(frame) = &frame {
            self.bytes.fetch_sub(frame.weight(), Ordering::Relaxed);
        }
        frame
    }
}

impl Frame {
    /// About how much memory it takes, beside its place: text and lists that others decide the length of. What is shared
    /// by all is held once, however many are slow.
    fn weight(&self) -> usize {
        let Self::Own(message) = self else { return 0 };
        match &**message {
            TrackerMessage::Signal { data, .. } => match data {
                Signal::Offer { sdp } | Signal::Answer { sdp } => sdp.len(),
                Signal::Candidate { candidate, .. } => candidate.len(),
            },
            TrackerMessage::Plan { places, .. } => {
                places.iter().map(|place| size_of_val(place) + size_of_val(&*place.children)).sum()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(length: usize) -> Frame {
        let data = Signal::Offer { sdp: "x".repeat(length) };
        Frame::Own(Box::new(TrackerMessage::Signal { from: 1, data }))
    }

    #[test]
    fn bytes_are_bounded_and_come_back_as_they_are_read() {
        let (queue, mut frames) = new(100, 40_000);
        let sent = (0..10).filter(|_| queue.try_send(offer(16_000)).is_ok()).count();
        assert_eq!(sent, 2, "{} bytes wait", queue.bytes.load(Ordering::Relaxed));
        assert_eq!(queue.try_send(Frame::Close(Goodbye::Policy)), Ok(()), "what weighs nothing has room");
        assert!(frames.try_recv().is_some());
        assert_eq!(queue.try_send(offer(16_000)), Ok(()));
        assert_eq!(queue.try_send(offer(16_000)), Err(Full));
        while frames.try_recv().is_some() {}
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);
        let (queue, _frames) = new(3, 40_000);
        assert_eq!((0..10).filter(|_| queue.try_send(offer(1)).is_ok()).count(), 3, "messages are, too");
    }
}
