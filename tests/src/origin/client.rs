//! An HTTP/1.1 client that costs next to nothing, so that a crowd of them measures the server: one connection kept
//! open, bodies thrown away.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    request: String,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body's bytes.
    pub bytes: u64,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Connection {
    /// Connects; `buffer_bytes` is what one read may take.
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn open(address: SocketAddr, buffer_bytes: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; buffer_bytes.max(2048)], request: String::new() })
    }

    /// Sends a request and takes the answer to its last byte.
    ///
    /// # Errors
    /// If the connection ends or does not speak HTTP/1.1.
    pub async fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.fetch(path, "accept-encoding: gzip\r\n", |_| {}).await
    }

    /// The same with an `Accept-Encoding` of its own.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub async fn get_coded(&mut self, path: &str, accept_encoding: &str) -> io::Result<Answer> {
        self.fetch(path, &format!("accept-encoding: {accept_encoding}\r\n"), |_| {}).await
    }

    /// The same with the body as text.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub async fn get_text(&mut self, path: &str) -> io::Result<(u16, String)> {
        let (status, body) = self.get_bytes(path).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// The same with the body as bytes.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub async fn get_bytes(&mut self, path: &str) -> io::Result<(u16, Vec<u8>)> {
        let mut body = Vec::new();
        let answer = self.fetch(path, "", |bytes| body.extend_from_slice(bytes)).await?;
        Ok((answer.status, body))
    }

    async fn fetch(&mut self, path: &str, headers: &str, mut take: impl FnMut(&[u8])) -> io::Result<Answer> {
        self.request.clear();
        self.request.push_str("GET ");
        self.request.push_str(path);
        self.request.push_str(" HTTP/1.1\r\nhost: bench\r\n");
        self.request.push_str(headers);
        self.request.push_str("\r\n");
        self.stream.write_all(self.request.as_bytes()).await?;
        let mut filled = 0;
        let (head, status, length) = loop {
            if filled == self.buffer.len() {
                return Err(broken("the head is too long"));
            }
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            let end = self.buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let text =
                    std::str::from_utf8(&self.buffer[..end]).map_err(|_| broken("the head is no text"))?;
                break (end + 4, status(text)?, length(text));
            }
        };
        take(&self.buffer[head..filled]);
        let mut bytes = (filled - head) as u64;
        let length = length.ok_or_else(|| broken("an answer without Content-Length"))?;
        while bytes < length {
            let wanted = usize::try_from(length - bytes).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = self.stream.read(&mut self.buffer[..wanted]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            take(&self.buffer[..read]);
            bytes += read as u64;
        }
        Ok(Answer { status, bytes })
    }
}

fn status(head: &str) -> io::Result<u16> {
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| broken("no status"))
}

fn length(head: &str) -> Option<u64> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    })
}

/// The sum of a metric's lines that contain `label`, from a server's `/metrics`.
///
/// # Errors
/// If they cannot be fetched.
pub async fn metric(address: SocketAddr, name: &str, label: &str) -> io::Result<f64> {
    let (_, text) = Connection::open(address, 16 << 10).await?.get_text("/metrics").await?;
    let lines = text
        .lines()
        .filter(|line| line.split([' ', '{']).next() == Some(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(lines.sum())
}
