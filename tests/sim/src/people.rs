//! Who comes when, stays how long, and over what line: drawn once for a scenario and seed, so that every policy faces
//! the same audience.

use crate::random::Random;
use crate::scenario::{Pattern, People, Scenario};

/// What kind of NAT a viewer sits behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// None, or one that lets anybody in once a port is open.
    Open,
    /// Lets in whom the viewer has written to, by address.
    AddressRestricted,
    /// The same by address and port.
    PortRestricted,
    /// Another port for every destination.
    Symmetric,
    /// No UDP at all.
    Blocked,
}

/// Whether two viewers can connect directly.
#[must_use]
pub(crate) fn can_connect(a: Nat, b: Nat) -> bool {
    use Nat::{Blocked, PortRestricted, Symmetric};
    !matches!(
        (a, b),
        (Blocked, _) | (_, Blocked) | (Symmetric, Symmetric | PortRestricted) | (PortRestricted, Symmetric)
    )
}

/// One visit of one viewer. Times in microseconds of the simulation.
#[derive(Clone, Debug)]
pub(crate) struct Visit {
    /// When the page is opened.
    pub(crate) join_us: u64,
    /// When it is closed; `u64::MAX` if it stays.
    pub(crate) leave_us: u64,
    /// Whether it says goodbye.
    pub(crate) says_goodbye: bool,
    /// What the line can send.
    pub(crate) uplink_bps: u64,
    /// What the viewer may send, by the rules; 0 for those who never upload.
    pub(crate) usable_bps: u64,
    /// What its core was told that it may upload.
    pub(crate) granted_bps: Option<u64>,
    /// What the line can receive.
    pub(crate) downlink_bps: u64,
    /// Round trip of the access line.
    pub(crate) access_us: u64,
    /// Where the viewer lives, in km.
    pub(crate) place: [f64; 2],
    /// Its NAT.
    pub(crate) nat: Nat,
    /// Whether it gives.
    pub(crate) shares: bool,
    pub(crate) manner: Manner,
    /// The rendition with which it starts.
    pub(crate) rendition: u8,
}

/// How a viewer treats the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// Sends garbage.
    Pollutes,
    /// Promises what it does not send.
    Lies,
}

impl Manner {
    fn of(people: &People, unit: f64) -> Self {
        if unit < people.polluters {
            Self::Pollutes
        } else if unit < people.polluters + people.liars {
            Self::Lies
        } else {
            Self::Honest
        }
    }
}

/// Draws the visits of a run, by time of joining.
#[must_use]
pub(crate) fn draw(scenario: &Scenario, viewers: usize, seed: u64) -> Vec<Visit> {
    let root = Random::new(seed);
    let mut times = times(scenario, viewers, &mut root.fork(1));
    times.sort_unstable();
    let mut lines = root.fork(2);
    let mut visits: Vec<Visit> = times
        .into_iter()
        .map(|(join_us, leave_us)| person(scenario, join_us, leave_us, &mut lines))
        .collect();
    free_lines(scenario, &mut visits);
    lose_seeders(scenario, &mut visits);
    visits
}

fn seconds(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

fn times(scenario: &Scenario, viewers: usize, random: &mut Random) -> Vec<(u64, u64)> {
    let visits = &scenario.visits;
    let end = scenario.seconds;
    let mut times = Vec::new();
    let mut stay = |join: f64, leave: f64| {
        let leave = if leave < end { seconds(leave) } else { u64::MAX };
        times.push((seconds(join), leave));
    };
    match visits.pattern {
        Pattern::Steady => {
            (0..viewers).for_each(|_| stay(random.between(0.0, visits.join_over_s), f64::INFINITY));
        }
        Pattern::Churn => {
            let mean = 60.0 / visits.replaced_per_minute.max(1e-9);
            for _ in 0..viewers {
                let mut join = random.between(0.0, visits.join_over_s);
                while join < end {
                    let leave = join + random.exponential(mean);
                    stay(join, leave);
                    join = leave;
                }
            }
        }
        Pattern::Sessions => {
            const ZAPPERS: f64 = 0.35;
            let (zap, film) = ((45.0_f64, 1.0_f64), (1_500.0_f64, 1.1_f64));
            let mean = |(median, sigma): (f64, f64)| median * (sigma * sigma / 2.0).exp();
            let mean_all = ZAPPERS * mean(zap) + (1.0 - ZAPPERS) * mean(film);
            for _ in 0..viewers {
                // Who is there at a random moment is there for longer than who comes, and has part of it behind him.
                let is_zapper = random.chance(ZAPPERS * mean(zap) / mean_all);
                let (median, sigma) = if is_zapper { zap } else { film };
                let left = random.unit() * random.lognormal(median * (sigma * sigma).exp(), sigma);
                let join = random.between(0.0, visits.join_over_s);
                stay(join, join + left.max(1.0));
            }
            let mut join = visits.join_over_s;
            loop {
                join += random.exponential(mean_all / viewers as f64);
                if join >= end {
                    break;
                }
                let (median, sigma) = if random.chance(ZAPPERS) { zap } else { film };
                stay(join, join + random.lognormal(median, sigma).max(1.0));
            }
        }
        Pattern::Flash => {
            for _ in 0..viewers {
                let join = if random.chance(visits.burst_share) {
                    visits.burst_at_s + random.between(0.0, visits.burst_s)
                } else {
                    random.between(0.0, 600.0_f64.min(end))
                };
                stay(join, f64::INFINITY);
            }
        }
    }
    times
}

fn person(scenario: &Scenario, join_us: u64, leave_us: u64, random: &mut Random) -> Visit {
    let people = &scenario.people;
    let rate_bps = f64::from(scenario.media.rates_kbps[0]) * 1e3;
    let drawn = random.lognormal(people.uplink_median_kbps, people.uplink_sigma) / people.uplink_divisor;
    let uplink_bps = people.uplink_kbps.unwrap_or(drawn).clamp(64.0, 1e6) * 1e3;
    let shares = !random.chance(people.leeches);
    let share = if people.uplink_granted { 1.0 } else { people.uplink_usable };
    let usable = (uplink_bps * share).min(rate_bps * people.uplink_cap);
    let downlink = random.lognormal(people.downlink_median_kbps, people.downlink_sigma).min(1e6) * 1e3;
    let is_mobile = random.chance(scenario.network.mobile);
    let [low, high] = scenario.network.access_rtt_ms;
    Visit {
        join_us,
        leave_us,
        says_goodbye: !random.chance(scenario.visits.ungraceful),
        uplink_bps: uplink_bps as u64,
        usable_bps: if shares { usable as u64 } else { 0 },
        granted_bps: people.uplink_granted.then_some(uplink_bps as u64),
        downlink_bps: downlink.max(1.5 * rate_bps) as u64,
        access_us: (random.between(low, high) * 1e3) as u64,
        place: [random.unit() * scenario.network.area_km, random.unit() * scenario.network.area_km],
        nat: nat(is_mobile, random.unit()),
        shares,
        manner: Manner::of(people, random.unit()),
        rendition: choose(&scenario.play.shares, random.unit()),
    }
}

fn nat(is_mobile: bool, unit: f64) -> Nat {
    let mix = if is_mobile { [0.05, 0.10, 0.40, 0.40] } else { [0.15, 0.25, 0.45, 0.12] };
    let kinds = [Nat::Open, Nat::AddressRestricted, Nat::PortRestricted, Nat::Symmetric];
    let mut left = unit;
    for (share, kind) in mix.into_iter().zip(kinds) {
        if left < share {
            return kind;
        }
        left -= share;
    }
    Nat::Blocked
}

/// The index that a number in [0, 1) falls on, by shares.
#[must_use]
pub(crate) fn choose(shares: &[f64], unit: f64) -> u8 {
    let mut left = unit;
    for (index, share) in (0..).zip(shares) {
        if left < *share {
            return index;
        }
        left -= share;
    }
    0
}

/// Gives the first to come a line that nothing is known of and that has no end.
fn free_lines(scenario: &Scenario, visits: &mut [Visit]) {
    let people = &scenario.people;
    for visit in visits.iter_mut().take(people.free_lines) {
        visit.uplink_bps = 1_000_000_000;
        visit.granted_bps = None;
        if visit.shares {
            visit.usable_bps = (f64::from(scenario.media.rates_kbps[0]) * 1e3 * people.uplink_cap) as u64;
        }
    }
}

fn lose_seeders(scenario: &Scenario, visits: &mut [Visit]) {
    let faults = &scenario.faults;
    let at_us = seconds(faults.at_s);
    let mut there: Vec<usize> = (0..visits.len())
        .filter(|index| visits[*index].join_us < at_us && visits[*index].leave_us > at_us)
        .collect();
    there.sort_by_key(|index| std::cmp::Reverse((visits[*index].usable_bps, visits[*index].uplink_bps)));
    let count = (there.len() as f64 * faults.seeders_lost).round() as usize;
    for index in there.into_iter().take(count) {
        visits[index].leave_us = at_us;
        visits[index].says_goodbye = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nat_mix_keeps_apart_about_29_percent_of_the_pairs() {
        let scenario = Scenario::named("nat").unwrap();
        let people = draw(&scenario, 1_500, 3);
        let pairs = (0..people.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let all = people.len() * (people.len() - 1) / 2;
        let open = pairs.filter(|(a, b)| can_connect(people[*a].nat, people[*b].nat)).count();
        let share = open as f64 / all as f64;
        assert!((0.69..0.75).contains(&share), "{share}");
    }

    #[test]
    fn mean_usable_uplink_is_that_of_the_notes() {
        let scenario = Scenario::default();
        let people = draw(&scenario, 20_000, 3);
        let mean = people.iter().map(|person| person.usable_bps as f64).sum::<f64>() / 20_000.0 / 3e6;
        assert!((mean - 1.59).abs() < 0.03, "{mean}");
    }

    #[test]
    fn churn_replaces_the_share_asked_for() {
        let scenario = Scenario::named("churn").unwrap();
        let people = draw(&scenario, 1_000, 3);
        let leaves = people.iter().filter(|visit| visit.leave_us < u64::MAX).count() as f64;
        let per_minute = leaves / (scenario.seconds / 60.0);
        assert!((270.0..310.0).contains(&per_minute), "{per_minute}");
    }

    #[test]
    fn session_audience_keeps_its_size() {
        let scenario = Scenario::named("sessions").unwrap();
        let people = draw(&scenario, 2_000, 9);
        let there = |at: f64| {
            let at = seconds(at);
            people.iter().filter(|visit| visit.join_us <= at && visit.leave_us > at).count()
        };
        assert!(there(60.0).abs_diff(2_000) < 120 && there(170.0).abs_diff(2_000) < 120, "{}", there(170.0));
    }
}
