//! In: an address, a path and headers; out: status, headers and body. A client of a few lines, so that no client library
//! hides what the agent really sends.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long any read or write may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers with lower-case names, in order.
    pub headers: Vec<(String, String)>,
    /// The body with transfer encoding removed, content encoding kept.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.body).context("the body is not UTF-8")
    }
}

/// `GET path` with more headers.
///
/// # Errors
/// When the server cannot be reached, is silent for too long, or answers something that is not HTTP.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    request(address, "GET", path, headers)
}

/// Any method without a body.
///
/// # Errors
/// As [`get`].
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let mut stream =
        TcpStream::connect_timeout(&address, DEADLINE).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    read_response(&mut BufReader::new(stream), method == "HEAD").with_context(|| format!("{method} {path}"))
}

fn read_response(reader: &mut impl BufRead, head_only: bool) -> Result<Response> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status =
        line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("not HTTP: {line:?}"))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    if head_only {
        reader.read_to_end(&mut response.body)?;
        if !response.body.is_empty() {
            bail!("HEAD was answered with a body of {} bytes", response.body.len());
        }
    } else if response.header("transfer-encoding") == Some("chunked") {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size =
                usize::from_str_radix(line.trim_end(), 16).with_context(|| format!("bad chunk {line:?}"))?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            response.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        reader.read_to_end(&mut response.body)?;
        if let Some(length) = response.header("content-length")
            && length.parse() != Ok(response.body.len())
        {
            bail!("content-length is {length}, the body has {} bytes", response.body.len());
        }
    }
    Ok(response)
}
