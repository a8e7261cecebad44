//! One file over HTTP, in as many attempts as it takes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::atomic::unwritable;
use crate::error::DataError;
use crate::own_file;
use crate::progress::Progress;

/// Attempts without a new byte before giving up, and the pause before the next, which doubles each time.
const FRUITLESS_ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// A connection that was silent for so long is given up and replaced.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// A file to be downloaded.
pub(super) struct Transfer<'a> {
    pub(super) url: &'a str,
    /// Its size, where it is known.
    pub(super) bytes: Option<u64>,
    /// Where what has come is kept.
    pub(super) partial: &'a Path,
    pub(super) progress: &'a Progress,
}

/// How an attempt ended.
enum Attempt {
    Complete,
    /// The connection failed, or the server asked for patience.
    Broken(String),
}

impl Transfer<'_> {
    /// Fetches what is missing of the file.
    pub(super) fn run(&self) -> Result<(), DataError> {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(CONNECT_LIMIT))
            .timeout_per_read(Some(SILENCE_LIMIT))
            .user_agent(concat!("wrn-dist/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        self.progress.stage(format!("fetching {}", self.url), self.bytes.unwrap_or(0));
        let mut furthest = self.received();
        let mut fruitless = 0;
        loop {
            let problem = match self.attempt(&agent)? {
                Attempt::Complete => {
                    self.progress.finish();
                    return Ok(());
                }
                Attempt::Broken(problem) => problem,
            };
            let received = self.received();
            fruitless = if received > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(received);
            if fruitless == FRUITLESS_ATTEMPTS {
                let problem =
                    format!("{problem}; {received} bytes are kept, and the same command goes on from there");
                return Err(self.error(problem));
            }
            thread::sleep(FIRST_PAUSE * (1 << fruitless));
        }
    }

    fn received(&self) -> u64 {
        fs::metadata(self.partial).map_or(0, |metadata| metadata.len())
    }

    fn error(&self, problem: impl Into<String>) -> DataError {
        DataError::Fetch { url: self.url.into(), problem: problem.into() }
    }

    fn attempt(&self, agent: &Agent) -> Result<Attempt, DataError> {
        let have = self.received();
        if self.bytes == Some(have) {
            return Ok(Attempt::Complete);
        }
        let mut request = agent.get(self.url);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(ureq::Error::BadUri(problem)) => return Err(self.error(format!("is no address: {problem}"))),
            Err(error) => return Ok(Attempt::Broken(error.to_string())),
        };
        let status = response.status();
        let (begin, offered) = match status {
            StatusCode::OK => (0, header(&response, "content-length")),
            StatusCode::PARTIAL_CONTENT => match content_range(&response) {
                Some((begin, total)) if begin == have => (have, total),
                _ => return Err(self.error("the server sends another part than was asked for")),
            },
            // There is nothing behind what is here, or the server counts differently: begin anew.
            StatusCode::RANGE_NOT_SATISFIABLE if self.bytes.is_none_or(|bytes| have > bytes) => {
                fs::remove_file(self.partial).map_err(unwritable(self.partial))?;
                return Ok(Attempt::Broken("the server has fewer bytes than were received".into()));
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Attempt::Broken(format!("the server answers {status}")));
            }
            status => return Err(self.error(format!("the server answers {status}"))),
        };
        if let (Some(expected), Some(offered)) = (self.bytes, offered)
            && expected != offered
        {
            return Err(self.error(format!("the server has a file of {offered} bytes; expected {expected}")));
        }
        self.receive(response, begin, offered)
    }

    fn receive(
        &self,
        response: Response<Body>,
        begin: u64,
        offered: Option<u64>,
    ) -> Result<Attempt, DataError> {
        let mut file = self.open_at(begin).map_err(unwritable(self.partial))?;
        self.progress.set(begin);
        // Without a size from either side the end of the connection is the end of the file.
        let total = self.bytes.or(offered);
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut have = begin;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) if total.is_none_or(|total| have == total) => {
                    file.sync_all().map_err(unwritable(self.partial))?;
                    return Ok(Attempt::Complete);
                }
                Ok(0) => return Ok(Attempt::Broken(format!("the connection ended after {have} bytes"))),
                Ok(read) => read,
                Err(error) => return Ok(Attempt::Broken(error.to_string())),
            };
            have += read as u64;
            if let Some(total) = total.filter(|&total| have > total) {
                return Err(self.error(format!("the server sends more than {total} bytes")));
            }
            file.write_all(&buffer[..read]).map_err(unwritable(self.partial))?;
            self.progress.advance(read as u64);
        }
    }

    fn open_at(&self, begin: u64) -> std::io::Result<File> {
        let file = own_file::open_privately_to_append(self.partial)?;
        file.set_len(begin)?;
        Ok(file)
    }
}

fn header(response: &Response<Body>, name: &str) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}

/// First byte and size of the whole file, from `bytes BEGIN-END/TOTAL`.
fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let text = response.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}
