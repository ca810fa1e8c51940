//! Namespaces, links between them, and the routers' rules.

use std::process::Command;

/// Where the tracker is. The addresses look public, because private ones are treated otherwise; they exist in these
/// namespaces only.
pub(crate) const SERVER: &str = "5.5.5.5";

/// What a site's router does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No NAT, no filter.
    Open,
    /// One outside port for each inside one, open to those who were sent to.
    PortRestricted,
    /// Another outside port for each destination.
    Symmetric,
    /// Port-restricted, and UDP does not pass.
    Blocked,
}

const KINDS: [Kind; 4] = [Kind::Open, Kind::PortRestricted, Kind::Symmetric, Kind::Blocked];
/// Sites of each kind: one for each end of a pair.
const SITES: usize = 2;

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::Blocked => "UDP blocked",
        }
    }

    fn rules(self) -> String {
        let masquerade = match self {
            Self::Open => return String::new(),
            Self::Symmetric => "masquerade fully-random",
            Self::PortRestricted | Self::Blocked => "masquerade",
        };
        // Where the kernel has bridges filtered, what two hosts of the site say to each other comes along here, too.
        let block = if self == Self::Blocked { "oifname \"wan\" meta l4proto udp drop" } else { "" };
        // What comes unasked is dropped before it is remembered: else it would take the port that the inside wants.
        format!(
            "table ip site {{
                chain outward {{ type nat hook postrouting priority 100; oifname \"wan\" {masquerade}; }}
                chain own {{ type filter hook input priority 0; iifname \"wan\" ct state new drop; }}
                chain through {{
                    type filter hook forward priority 0;
                    iifname \"wan\" ct state new drop;
                    {block}
                }}
            }}"
        )
    }
}

/// The namespace of a site's host.
pub(crate) fn host((kind, site): (Kind, usize), host: usize) -> String {
    format!("{}{site}h{host}", short(kind))
}

fn short(kind: Kind) -> &'static str {
    match kind {
        Kind::Open => "op",
        Kind::PortRestricted => "pr",
        Kind::Symmetric => "sy",
        Kind::Blocked => "bl",
    }
}

/// All namespaces; taken down when it is dropped.
pub(crate) struct Network {
    prefix: String,
    made: Vec<String>,
}

impl Network {
    pub(crate) fn build() -> Result<Self, String> {
        let mut network = Self { prefix: format!("shoal{}-", std::process::id()), made: Vec::new() };
        network.add("net")?;
        network.inside("net", &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        network.add("server")?;
        network.link(("net", "server", "5.5.5.1/24"), ("server", "wan", "5.5.5.5/24"))?;
        network.inside("server", &["ip", "route", "add", "default", "via", "5.5.5.1"])?;
        for (at, kind) in KINDS.into_iter().enumerate() {
            for site in 0..SITES {
                network.site(kind, site, 2 * at + site)?;
            }
        }
        Ok(network)
    }

    /// A router between the internet and two hosts.
    fn site(&mut self, kind: Kind, site: usize, number: usize) -> Result<(), String> {
        let router = format!("{}{site}r", short(kind));
        self.add(&router)?;
        self.inside(&router, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        let (near, far) = (format!("5.6.{number}.1"), format!("5.6.{number}.2"));
        self.link(("net", &router, &format!("{near}/24")), (&router, "wan", &format!("{far}/24")))?;
        self.inside(&router, &["ip", "route", "add", "default", "via", &near])?;
        let lan =
            if kind == Kind::Open { format!("5.7.{number}") } else { format!("192.168.{}", 10 + number) };
        if kind == Kind::Open {
            self.inside("net", &["ip", "route", "add", &format!("{lan}.0/24"), "via", &far])?;
        } else {
            self.inside(&router, &["nft", &kind.rules()])?;
        }
        self.inside(&router, &["ip", "link", "add", "lan", "type", "bridge"])?;
        self.inside(&router, &["ip", "address", "add", &format!("{lan}.1/24"), "dev", "lan"])?;
        self.inside(&router, &["ip", "link", "set", "lan", "up"])?;
        for number in 0..2 {
            let name = host((kind, site), number);
            self.add(&name)?;
            let address = format!("{lan}.{}/24", 2 + number);
            self.link((&router, &name, ""), (&name, "lan", &address))?;
            self.inside(&router, &["ip", "link", "set", &name, "master", "lan"])?;
            self.inside(&name, &["ip", "route", "add", "default", "via", &format!("{lan}.1")])?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        run(&["ip", "netns", "add", &self.full(name)])?;
        self.made.push(name.to_owned());
        self.inside(name, &["ip", "link", "set", "lo", "up"])
    }

    /// A cable: namespace, name of its end there, address of that end.
    fn link(&self, one: (&str, &str, &str), two: (&str, &str, &str)) -> Result<(), String> {
        let (here, there) = (self.full(one.0), self.full(two.0));
        run(&[
            "ip", "link", "add", one.1, "netns", &here, "type", "veth", "peer", "name", two.1, "netns",
            &there,
        ])?;
        for (namespace, end, address) in [one, two] {
            if !address.is_empty() {
                self.inside(namespace, &["ip", "address", "add", address, "dev", end])?;
            }
            self.inside(namespace, &["ip", "link", "set", end, "up"])?;
        }
        Ok(())
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn inside(&self, name: &str, command: &[&str]) -> Result<(), String> {
        let name = self.full(name);
        run(&[&["ip", "netns", "exec", &name], command].concat())
    }

    /// A program in a namespace.
    pub(crate) fn command(&self, name: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.full(name), program]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = run(&["ip", "netns", "delete", &self.full(name)]);
        }
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", words.join(" "), error.trim()))
}
