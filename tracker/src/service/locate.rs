//! Where viewers are: country and autonomous system from the operator's MMDB files, the subnet from the address itself.
//!
//! Files are read once, at the start: an operator who renews them restarts the program. What is found stays in memory
//! as numbers and is never told to anybody.

use std::fmt;
use std::net::IpAddr;

use maxminddb::{Reader, path};
use tracing::info;

use crate::Error;
use crate::plan::Locality;
use crate::swarm::Network;

/// The files.
#[derive(Default)]
pub(super) struct Atlas {
    files: Vec<Reader<Vec<u8>>>,
}

impl fmt::Debug for Atlas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Atlas").field("files", &self.files.len()).finish()
    }
}

impl Atlas {
    /// Reads the files.
    pub(super) fn open(files: &[String]) -> Result<Self, Error> {
        let open = |file: &String| {
            let reader = Reader::open_readfile(file)
                .map_err(|error| Error::Config(format!("mmdb_files: {file}: {error}")))?;
            info!(kind = reader.metadata().database_type, "MMDB file read");
            Ok(reader)
        };
        Ok(Self { files: files.iter().map(open).collect::<Result<_, Error>>()? })
    }

    /// Where an address is. Without files only the subnet is known.
    pub(super) fn locate(&self, address: IpAddr) -> Locality {
        let mut locality = Locality { subnet: subnet(address), ..Locality::default() };
        for file in &self.files {
            // An address family that the file does not cover, or a broken record: then it is not known.
            let Ok(found) = file.lookup(address.to_canonical()) else { continue };
            if let Ok(Some(asn)) = found.decode_path(&path!["autonomous_system_number"]) {
                locality.asn = asn;
            }
            if let Ok(Some(code)) = found.decode_path::<&str>(&path!["country", "iso_code"])
                && let [first, second] = *code.as_bytes()
            {
                locality.country = u16::from_be_bytes([first, second]);
            }
        }
        locality
    }
}

/// A number for the /24 or /48 of an address. None (0) for inside addresses: the tracker can't tell whether two private
/// networks are the same.
fn subnet(address: IpAddr) -> u64 {
    // The length is in the top bits, so that 1.2.3.0/24 is not the same as 0:1:203::/48.
    let number =
        |bytes: &[u8]| bytes.iter().fold(bytes.len() as u64, |number, byte| (number << 8) | u64::from(*byte));
    match Network::of(address) {
        Network::Inside => 0,
        Network::V4(bytes) => number(&bytes),
        Network::V6(bytes) => number(&bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest writer of the format (MaxMind DB, version 2.0): a binary tree of 24-bit records, then data.
    struct Writer {
        /// Left and right: a node's number, or none.
        nodes: Vec<[Record; 2]>,
        data: Vec<u8>,
    }

    #[derive(Clone, Copy)]
    enum Record {
        Empty,
        Node(usize),
        Data(usize),
    }

    impl Writer {
        fn new() -> Self {
            Self { nodes: vec![[Record::Empty; 2]], data: Vec::new() }
        }

        /// All IPv4 addresses that begin like `address`, in an IPv6 tree: 96 zero bits come first.
        fn put(&mut self, address: &str, prefix: u32, record: &[u8]) {
            let IpAddr::V4(v4) = address.parse().unwrap() else { panic!("IPv4 only") };
            let bits = u128::from(v4.to_bits());
            let at_data = self.data.len();
            self.data.extend_from_slice(record);
            let mut node = 0;
            for depth in 0..96 + prefix {
                let side = usize::from((bits >> (127 - depth)) & 1 == 1);
                if depth + 1 == 96 + prefix {
                    self.nodes[node][side] = Record::Data(at_data);
                } else if let Record::Node(next) = self.nodes[node][side] {
                    node = next;
                } else {
                    let next = self.nodes.len();
                    self.nodes.push([Record::Empty; 2]);
                    self.nodes[node][side] = Record::Node(next);
                    node = next;
                }
            }
        }

        fn write(&self) -> Vec<u8> {
            let count = self.nodes.len();
            let mut file = Vec::new();
            for node in &self.nodes {
                for record in node {
                    let number = match record {
                        Record::Empty => count,
                        Record::Node(next) => *next,
                        // 16 bytes of zeros lie between tree and data.
                        Record::Data(at) => count + 16 + at,
                    };
                    file.extend_from_slice(&u32::try_from(number).unwrap().to_be_bytes()[1..]);
                }
            }
            file.extend_from_slice(&[0; 16]);
            file.extend_from_slice(&self.data);
            file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
            let number = |value: usize| uint32(u32::try_from(value).unwrap());
            file.extend_from_slice(&map(&[
                ("binary_format_major_version", number16(2)),
                ("binary_format_minor_version", number16(0)),
                ("build_epoch", [&[0x04, 0x02][..], &1_700_000_000_u32.to_be_bytes()].concat()),
                ("database_type", text("Test")),
                ("description", map(&[("en", text("test"))])),
                ("ip_version", number16(6)),
                ("languages", vec![0x00, 0x04]),
                ("node_count", number(count)),
                ("record_size", number16(24)),
            ]));
            file
        }
    }

    /// Control byte: type in the upper three bits, size in the lower five; 29 means that the next byte adds to 29.
    fn text(value: &str) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap();
        let control = if length < 29 { vec![0x40 | length] } else { vec![0x40 | 29, length - 29] };
        [control, value.as_bytes().to_vec()].concat()
    }

    fn uint32(value: u32) -> Vec<u8> {
        [&[0xc4][..], &value.to_be_bytes()].concat()
    }

    fn number16(value: u16) -> Vec<u8> {
        [&[0xa2][..], &value.to_be_bytes()].concat()
    }

    fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0xe0 | u8::try_from(entries.len()).unwrap()];
        for (key, value) in entries {
            bytes.extend_from_slice(&text(key));
            bytes.extend_from_slice(value);
        }
        bytes
    }

    fn atlas() -> Atlas {
        let mut asn = Writer::new();
        asn.put("5.6.0.0", 16, &map(&[("autonomous_system_number", uint32(3320))]));
        asn.put("9.0.0.0", 8, &map(&[("autonomous_system_number", uint32(64_500))]));
        let mut country = Writer::new();
        country.put("5.0.0.0", 8, &map(&[("country", map(&[("iso_code", text("DE"))]))]));
        let folder = tempfile::tempdir().unwrap();
        let files = [("asn.mmdb", asn.write()), ("country.mmdb", country.write())].map(|(name, bytes)| {
            let file = folder.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            file.to_str().unwrap().to_owned()
        });
        Atlas::open(&files).unwrap()
    }

    #[test]
    fn addresses_are_found_in_several_files() {
        let atlas = atlas();
        let locate = |address: &str| atlas.locate(address.parse().unwrap());
        let home = locate("5.6.7.8");
        assert_eq!((home.country, home.asn), (u16::from_be_bytes(*b"DE"), 3320));
        assert_eq!((locate("5.7.7.8").country, locate("5.7.7.8").asn), (home.country, 0));
        assert_eq!((locate("9.1.1.1").country, locate("9.1.1.1").asn), (0, 64_500));
        assert_eq!(locate("::ffff:5.6.7.9"), home, "an IPv4 address in IPv6 clothes, same subnet");
        assert_ne!(locate("5.6.8.8").subnet, home.subnet);
        assert!(!locate("192.168.1.1").is_known());
    }

    #[test]
    fn without_files_the_subnet_is_known() {
        let atlas = Atlas::default();
        let locate = |address: &str| atlas.locate(address.parse().unwrap());
        assert_eq!(locate("5.6.7.8"), locate("5.6.7.9"));
        assert_ne!(locate("5.6.7.8"), locate("5.6.8.8"));
        assert_ne!(locate("2a01:4f8:1::1").subnet, 0);
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let error = Atlas::open(&["/nowhere/x.mmdb".into()]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/x.mmdb"), "{error}");
    }
}
