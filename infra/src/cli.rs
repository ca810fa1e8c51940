//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Live video that gets cheaper as more people watch.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything: WHIP endpoint, origin, tracker and pages on one HTTP port (8080), and one port, UDP and TCP, for
    /// publishers' media (8189).
    Serve(Serve),
    /// Publish a file or a test pattern to any WHIP endpoint, in real time.
    Publish(shoal_publisher::Options),
    /// Watch a stream without a screen, and take part in its swarm.
    Watch(crate::watch::Watch),
    /// Follow anybody's live HLS or LL-HLS stream and name each rule it breaks. Exit code 1 if there are any, 2 if it
    /// cannot be judged.
    Lint(crate::lint::Lint),
}

/// Flags of `shoal serve`: only what is typed daily; every setting is in the file.
#[derive(Debug, Default, Args)]
pub struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings with which the same command would run without this flag, each explained, and end: the defaults as
    /// far as configuration file, environment and other flags do not change them. It is itself a configuration file, but a
    /// secret is printed as "(not shown)" and has to be put in before the file is used.
    #[arg(long)]
    pub print_config: bool,
    /// The HTTP address and port (http.listen).
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Also listen on port 8443 with TLS and HTTP/2, with a certificate made now that browsers warn of
    /// (http.tls_self_signed).
    #[arg(long)]
    pub tls_self_signed: bool,
    /// An IP address or DNS name under which publishers reach the media port, when it is not this machine's own; may be
    /// given several times (ingest.public_ips).
    #[arg(long, value_name = "ADDRESS")]
    pub public_ip: Vec<String>,
    /// How much is logged (log.level).
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// Serve the HLS or LL-HLS stream at this URL under this name too, with a swarm; may be given several times
    /// (pull.streams, where also headers and further hosts can be set).
    #[arg(long, value_name = "NAME=URL")]
    pub pull: Vec<shoal_segmenter::pull::Source>,
    /// Encode smaller renditions of publishers' pictures, such as `480,240` for all streams and `NAME=720:2500` for one, as
    /// far as the machine has room (segmenter.ladder).
    #[arg(long, value_name = "[STREAM=]HEIGHT[:KILOBITS]", value_delimiter = ',')]
    pub ladder: Vec<shoal_segmenter::LadderRung>,
    /// Keep each stream as a recording, listed on the first page when it has ended, in this directory or `s3://BUCKET/PREFIX`;
    /// without one, in the directory `recordings` (segmenter.recording, segmenter.storage).
    #[arg(long, value_name = "PLACE", num_args = 0..=1, default_missing_value = "")]
    pub record: Option<String>,
    /// Also publish a moving test picture with sound under this name.
    #[arg(long, value_name = "STREAM")]
    pub test_pattern: Option<String>,
}
