//! The collector's thread: takes the stamps off the path's rings and writes the log.

use beamline_latency::log::{LogError, LogWriter};
use beamline_latency::meta::Meta;
use beamline_latency::recorder::Collector;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the rings are emptied. At [`RING`] stamps per ring a slice may leave 200,000 a second.
const INTERVAL: Duration = Duration::from_millis(20);
/// Stamps that wait in one ring.
pub(super) const RING: usize = 4096;

/// A log that is being written.
pub(super) struct LogThread {
    stop: Sender<Box<Meta>>,
    thread: JoinHandle<Result<(), LogError>>,
}

impl LogThread {
    /// Makes the file and starts the thread.
    pub(super) fn start(path: &Path, collector: Collector) -> Result<Self, LogError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let log = LogWriter::create(path)?;
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("collector".into())
            .spawn(move || collect(collector, log, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Takes the last stamps and closes the log. The path's threads have ended before.
    pub(super) fn finish(self, meta: Meta) -> Result<(), LogError> {
        // Where the thread has failed already, joining it tells why.
        let _ = self.stop.send(Box::new(meta));
        self.thread.join().unwrap_or_else(|_| {
            Err(std::io::Error::other("the collector's thread panicked; the log is not complete")
                .into())
        })
    }
}

fn collect<W: std::io::Write>(
    mut collector: Collector,
    mut log: LogWriter<W>,
    stopped: &Receiver<Box<Meta>>,
) -> Result<(), LogError> {
    loop {
        let meta = match stopped.recv_timeout(INTERVAL) {
            Ok(meta) => Some(meta),
            Err(RecvTimeoutError::Timeout) => None,
            // The host is gone without closing the log: what is written stays readable up to here.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        collector.drain(|stamp| log.push(stamp))?;
        if let Some(meta) = meta {
            log.finish(&meta, collector.dropped())?;
            return Ok(());
        }
    }
}
