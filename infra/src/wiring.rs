//! Tells the tracker what the segmenter has published. Neither knows the other.

use shoal_segmenter::{Event, Published, State, Streams};
use shoal_tracker::{Piece, Tracker};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Passes events on until `stop`.
pub(crate) async fn run(
    streams: Streams,
    mut events: Receiver<Event>,
    tracker: Tracker,
    stop: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            Ok(event) => pass_on(&tracker, event),
            Err(RecvError::Lagged(missed)) => {
                metrics::counter!("serve_events_missed_total").increment(missed);
                warn!(missed, "the tracker missed publications; viewers take them from the origin");
                resume(&streams, &mut events, &tracker);
            }
            // The registry lives as long as the server.
            Err(RecvError::Closed) => return,
        }
    }
}

fn pass_on(tracker: &Tracker, event: Event) {
    match event {
        Event::Started { stream, epoch, .. } => tracker.stream_started(&stream, epoch.0),
        Event::Published(published) => publish(tracker, &published),
        Event::Ended { stream, .. } => tracker.stream_ended(&stream),
    }
}

fn publish(tracker: &Tracker, published: &Published) {
    let piece =
        Piece { rendition: published.piece.rendition, msn: published.piece.msn, part: published.piece.part };
    tracker.published(&published.stream, piece, published.uri.clone(), &published.record, published.length);
}

/// After missed events only ends matter: pieces are old by now, and a start that was missed is one more stream that
/// is played from the origin until it starts anew.
fn resume(streams: &Streams, events: &mut Receiver<Event>, tracker: &Tracker) {
    *events = events.resubscribe();
    for stream in streams.list() {
        if stream.state == State::Ended {
            tracker.stream_ended(&stream.name);
        }
    }
}
