//! Tells the tracker what the segmenter has published. Neither knows the other.

use std::collections::HashMap;
use std::sync::Arc;

use shoal_segmenter::{Event, Published, State, StreamStats, Streams};
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
    let mut known = Known::default();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            Ok(event) => {
                if let Some(action) = known.take(event) {
                    carry_out(&tracker, action);
                }
            }
            Err(RecvError::Lagged(missed)) => {
                metrics::counter!("serve_events_missed_total").increment(missed);
                warn!(missed, "the tracker missed publications; viewers take them from the origin");
                // Subscribed before looking: what starts in between is then seen twice, and not at all never.
                events = events.resubscribe();
                for action in known.compare(&streams.stats()) {
                    carry_out(&tracker, action);
                }
            }
            // The registry lives as long as the server.
            Err(RecvError::Closed) => return,
        }
    }
}

/// What the tracker is to be told.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Start(Arc<str>, [u8; 16]),
    Publish(Arc<Published>),
    End(Arc<str>),
}

fn carry_out(tracker: &Tracker, action: Action) {
    match action {
        Action::Start(stream, epoch) => tracker.stream_started(&stream, epoch),
        Action::Publish(published) => {
            let Published { piece, uri, record, length, stream, .. } = &*published;
            let piece = Piece { rendition: piece.rendition, msn: piece.msn, part: piece.part };
            tracker.published(stream, piece, uri.clone(), record, *length);
        }
        Action::End(stream) => tracker.stream_ended(&stream),
    }
}

/// The streams that the tracker knows to be live, with the epoch of each.
#[derive(Debug, Default)]
struct Known(HashMap<Arc<str>, [u8; 16]>);

impl Known {
    fn take(&mut self, event: Event) -> Option<Action> {
        match event {
            Event::Started { stream, epoch, .. } => self.start(stream, epoch.0),
            Event::Published(published) => Some(Action::Publish(published)),
            // One of the same name that has begun since is another.
            Event::Ended { stream, epoch } if self.0.get(&stream) == Some(&epoch.0) => self.end(&stream),
            Event::Ended { .. } => None,
        }
    }

    fn start(&mut self, stream: Arc<str>, epoch: [u8; 16]) -> Option<Action> {
        let is_news = self.0.insert(stream.clone(), epoch) != Some(epoch);
        is_news.then_some(Action::Start(stream, epoch))
    }

    fn end(&mut self, stream: &str) -> Option<Action> {
        self.0.remove_entry(stream).map(|(stream, _)| Action::End(stream))
    }

    /// What has to be said after events were missed, so that the tracker knows what there is. Missed pieces are old
    /// by now.
    fn compare(&mut self, streams: &[StreamStats]) -> Vec<Action> {
        let live: HashMap<&str, [u8; 16]> = streams
            .iter()
            .filter(|stream| stream.state != State::Ended)
            .filter_map(|stream| {
                let epoch = u128::from_str_radix(&stream.epoch, 16).ok()?;
                Some((stream.name.as_str(), epoch.to_be_bytes()))
            })
            .collect();
        let over: Vec<Arc<str>> =
            self.0.keys().filter(|stream| !live.contains_key(&***stream)).cloned().collect();
        let mut actions: Vec<Action> = over.iter().filter_map(|stream| self.end(stream)).collect();
        actions.extend(live.into_iter().filter_map(|(stream, epoch)| self.start(stream.into(), epoch)));
        actions
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use shoal_segmenter::frame::{Frame, Input, MediaTime, TrackFormat, TrackId};
    use shoal_segmenter::{Config, Publication};

    use super::*;

    /// Publishes a second of silence: a stream without a picture.
    fn publish(streams: &Streams, name: &str) -> Publication {
        let publication = streams.publish(name).unwrap();
        let track = TrackId(0);
        publication.expect_tracks(&[track]);
        publication.push(Input::Format { track, format: TrackFormat::Opus { channels: 2 } }).unwrap();
        for number in 0..50 {
            let (pts, data) = (MediaTime(number * 20_000), vec![0xfc, 0xff, 0xfe].into());
            publication.push(Input::Frame(Frame { track, pts, is_keyframe: true, data })).unwrap();
        }
        publication
    }

    fn until(what: &str, mut is_true: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !is_true() {
            assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn a_start_and_an_end_that_were_missed_are_made_up_for() {
        let streams = Streams::new(Config::default(), SigningKey::from_bytes(&[5; 32]));
        let mut known = Known::default();
        let one = publish(&streams, "one");
        until("the first stream", || streams.stats().len() == 1);
        let actions = known.compare(&streams.stats());
        assert!(matches!(&actions[..], [Action::Start(name, _)] if &**name == "one"), "{actions:?}");
        assert_eq!(known.compare(&streams.stats()), [], "nothing is said twice");

        one.end();
        let _two = publish(&streams, "two");
        until("both", || {
            let stats = streams.stats();
            stats.iter().any(|s| s.state == State::Ended) && stats.iter().any(|s| s.name == "two")
        });
        let actions = known.compare(&streams.stats());
        assert!(
            matches!(&actions[..], [Action::End(one), Action::Start(two, _)] if &**one == "one" && &**two == "two"),
            "{actions:?}"
        );
        assert_eq!(known.compare(&[]), [Action::End("two".into())], "also one that is forgotten already");
    }

    #[test]
    fn the_end_of_an_old_epoch_does_not_end_the_new_one() {
        let streams = Streams::new(Config::default(), SigningKey::from_bytes(&[5; 32]));
        let mut events = streams.subscribe();
        let publication = publish(&streams, "one");
        let mut started = None;
        until("the start", || {
            started = started.take().or_else(|| events.try_recv().ok());
            started.is_some()
        });
        publication.end();
        let mut ended = None;
        until("the end", || {
            ended = events.try_recv().ok().filter(|event| matches!(event, Event::Ended { .. }));
            ended.is_some()
        });
        let (started, ended) = (started.unwrap(), ended.unwrap());
        let mut known = Known::default();
        assert!(known.take(started.clone()).is_some());
        known.0.insert("one".into(), [9; 16]);
        assert_eq!(known.take(ended.clone()), None);
        assert!(known.take(started).is_some(), "another epoch is another stream");
        assert!(matches!(known.take(ended), Some(Action::End(_))));
    }
}
