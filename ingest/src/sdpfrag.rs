//! SDP fragments of PATCH requests (RFC 8840): candidates, and ICE parameters of a restart.

use crate::sdp::{Refusal, check_ice};

/// Candidates in one fragment; more are ignored. Browsers gather about ten.
const CANDIDATES_MAX: usize = 32;

/// What a fragment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// The publisher's ICE user name fragment and password, when given.
    pub ice: Option<(String, String)>,
    /// Candidates that we can use, without `a=`.
    pub candidates: Vec<String>,
    /// Candidates that we can't use: names that only the publisher's network resolves, unknown transports.
    pub candidates_ignored: usize,
}

impl Fragment {
    /// Reads a fragment.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let (mut ufrag, mut pwd) = (None, None);
        let mut fragment = Self::default();
        let mut lines = 0;
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            lines += 1;
            let bytes = line.as_bytes();
            if bytes.len() < 2 || !bytes[0].is_ascii_lowercase() || bytes[1] != b'=' {
                return Err(Refusal::Malformed("a line is not of the form <letter>=<value>"));
            }
            if line.chars().any(char::is_control) {
                return Err(Refusal::Malformed("control characters"));
            }
            if let Some(value) = line.strip_prefix("a=ice-ufrag:") {
                ufrag = ufrag.or(Some(value.to_owned()));
            } else if let Some(value) = line.strip_prefix("a=ice-pwd:") {
                pwd = pwd.or(Some(value.to_owned()));
            } else if let Some(candidate) = line.strip_prefix("a=candidate:") {
                if is_usable(candidate)? && fragment.candidates.len() < CANDIDATES_MAX {
                    fragment.candidates.push(format!("candidate:{candidate}"));
                } else {
                    fragment.candidates_ignored += 1;
                }
            }
        }
        if lines == 0 {
            return Err(Refusal::Malformed("an empty fragment"));
        }
        fragment.ice = match (ufrag, pwd) {
            (Some(ufrag), Some(pwd)) => {
                check_ice(&ufrag, &pwd)?;
                Some((ufrag, pwd))
            }
            (None, None) => None,
            _ => return Err(Refusal::Malformed("ICE user name fragment and password come together")),
        };
        Ok(fragment)
    }
}

/// Whether a candidate's address is one that we can check: RFC 8839, 5.1.
fn is_usable(candidate: &str) -> Result<bool, Refusal> {
    let fields: Vec<&str> = candidate.split(' ').filter(|field| !field.is_empty()).collect();
    let [_, component, protocol, priority, address, port, typ, _, ..] = fields[..] else {
        return Err(Refusal::Malformed("a candidate ends too early"));
    };
    let is_numeric = component.parse::<u16>().is_ok()
        && priority.parse::<u32>().is_ok()
        && port.parse::<u16>().is_ok()
        && typ == "typ";
    if !is_numeric {
        return Err(Refusal::Malformed("a candidate"));
    }
    // Names ending in .local exist for the publisher's own network only; TCP candidates of a publisher are active:
    // it will come to us.
    Ok(component == "1"
        && protocol.eq_ignore_ascii_case("udp")
        && address.parse::<std::net::IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "a=candidate:1 1 udp 2130706431 192.0.2.7 50000 typ host generation 0";

    #[test]
    fn the_example_of_rfc_9725_is_read() {
        let text = format!(
            "a=group:BUNDLE 0 1\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
             a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n{HOST}\r\na=end-of-candidates\r\n"
        );
        let fragment = Fragment::parse(&text).unwrap();
        assert_eq!(fragment.ice, Some(("EsAw".into(), "P2uYro0UCOQ4zxjKXaWCBui1".into())));
        assert_eq!(fragment.candidates, [&HOST[2..]]);
        assert_eq!(fragment.candidates_ignored, 0);
    }

    #[test]
    fn candidates_that_mean_nothing_to_us_are_ignored_not_refused() {
        let text = "a=candidate:1 1 udp 1 aabbccdd-1234.local 50000 typ host\r\n\
                    a=candidate:2 1 tcp 1 192.0.2.7 9 typ host tcptype active\r\n\
                    a=candidate:3 1 dccp 1 192.0.2.7 9 typ host\r\n\
                    a=candidate:4 2 udp 1 192.0.2.7 9 typ host\r\n";
        let fragment = Fragment::parse(text).unwrap();
        assert_eq!((fragment.candidates.len(), fragment.candidates_ignored), (0, 4));
    }

    #[test]
    fn malformed_fragments_are_refused() {
        for text in ["", "hello", "a=candidate:1 1 udp", "a=ice-ufrag:EsAw", "a=ice-ufrag:E\r\na=ice-pwd:x"] {
            assert!(Fragment::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_number_of_candidates_is_bounded() {
        let text = format!("{HOST}\r\n").repeat(1000);
        let fragment = Fragment::parse(&text).unwrap();
        assert_eq!((fragment.candidates.len(), fragment.candidates_ignored), (32, 968));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(a=(candidate|ice-ufrag|ice-pwd):[ -~]{0,60}\r\n|\\PC{0,40}\n){0,12}") {
            let _ = Fragment::parse(&text);
        }
    }
}
