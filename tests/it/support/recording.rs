//! Recordings of calls to real servers: `tests/recordings`, made by `benches/recorder.rs`. Their form on disk, and what
//! the breaker makes of them.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use fusebox_state::{
    Moment, Outcome, Ratio,
    breaker::{Breaker, BreakerSettings, SlowCalls},
};

/// The longest that a recorded caller waited.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(200);
/// A recording's beginning, on the clock of what is driven over it.
pub(crate) const BEGIN: Moment = Moment::from_millis(1_000_000);

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With an answer.
    Answered,
    /// After [`TIMEOUT`], without one.
    TimedOut,
    /// In another way: refused, reset, an error.
    Failed,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Since the recording began.
    pub(crate) ended: Duration,
    pub(crate) took: Duration,
    pub(crate) how: Ended,
}

/// Their folder.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

/// The calls of a recording as it is on disk.
///
/// It is deflated, and for each call, in the order in which they ended, has two numbers of seven bits a byte, the
/// lowest first, each byte but a number's last with its highest bit set: the time since the previous call's end in
/// tenths of a millisecond; and the time it took in the same unit, times four, plus 0 if it was answered, 1 if it timed
/// out, 2 if it failed otherwise.
pub(crate) fn packed(calls: &[Call]) -> Vec<u8> {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::best());
    let mut before = 0;
    for call in calls {
        let ended = tenths(call.ended);
        let how = match call.how {
            Ended::Answered => 0,
            Ended::TimedOut => 1,
            Ended::Failed => 2,
        };
        for mut number in [ended - before, tenths(call.took) * 4 + how] {
            let mut bytes = Vec::new();
            while number >= 0x80 {
                bytes.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
                number >>= 7;
            }
            bytes.push(u8::try_from(number).expect("seven bits"));
            deflate.write_all(&bytes).expect("memory takes it");
        }
        before = ended;
    }
    deflate.finish().expect("memory takes it")
}

/// Reads a recording.
pub(crate) fn read(file: &Path) -> Vec<Call> {
    let packed = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    DeflateDecoder::new(&*packed).read_to_end(&mut bytes).expect("a whole recording");
    let mut bytes = bytes.into_iter();
    let mut number = || {
        let (mut number, mut bit) = (0_u64, 0);
        loop {
            let byte = bytes.next()?;
            number |= u64::from(byte & 0x7f) << bit;
            bit += 7;
            if byte < 0x80 {
                return Some(number);
            }
        }
    };
    let (mut calls, mut now) = (Vec::new(), 0);
    while let Some(since) = number() {
        let word = number().expect("a call has two numbers");
        now += since;
        let how = match word % 4 {
            0 => Ended::Answered,
            1 => Ended::TimedOut,
            _ => Ended::Failed,
        };
        calls.push(Call {
            ended: Duration::from_micros(now * 100),
            took: Duration::from_micros(word / 4 * 100),
            how,
        });
    }
    calls
}

fn tenths(time: Duration) -> u64 {
    u64::try_from(time.as_micros() / 100).expect("a recording is short")
}

/// When the breaker opens that such calls meet, with the settings that a Redis backend has by default; `None` if it
/// does not.
pub(crate) fn opens(calls: &[Call]) -> Option<Duration> {
    let breaker = Breaker::new(
        BreakerSettings {
            failure_threshold: 5,
            failure_rate: Ratio::new(0.5).expect("a ratio"),
            recovery_timeout: Duration::from_secs(30),
            recovery_timeout_max: Duration::from_secs(300),
            success_threshold: 3,
            window: Duration::from_secs(60),
            auto_recovery: true,
            attempt_timeout: TIMEOUT,
            jitter: Ratio::ZERO,
            slow: SlowCalls::default(),
        },
        1,
        BEGIN,
    );
    calls.iter().find_map(|call| {
        let now = BEGIN.plus(call.ended);
        let permit = breaker.try_acquire(now).ok()?;
        let outcome = match call.how {
            Ended::Answered => Outcome::SUCCESS,
            Ended::TimedOut | Ended::Failed => Outcome::FAILURE,
        };
        breaker.record(permit, outcome, now).map(|_| call.ended)
    })
}

/// What a recording is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The name of its file, without its end.
    pub(crate) name: String,
    /// For the tuning of detectors; held out otherwise.
    pub(crate) tuning: bool,
    /// The server ended or stopped all of a sudden, and does not answer any more.
    pub(crate) sudden: bool,
    /// When the breaker opens, in whole milliseconds since the beginning.
    pub(crate) opens: Option<Duration>,
}

impl Label {
    /// The label of the recording in `file`.
    pub(crate) fn of(file: &Path) -> Self {
        let name = file.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let opens = opens(&read(file));
        Self {
            tuning: ["redis7", "clickhouse18"].iter().any(|server| name.starts_with(server)),
            sudden: opens.is_some()
                && ["killed", "stopped", "crashed", "hung"].iter().any(|how| name.contains(how)),
            opens: opens
                .map(|at| Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or(0))),
            name,
        }
    }

    /// Its line in `labels.tsv`.
    pub(crate) fn line(&self) -> String {
        let half = if self.tuning { "tuning" } else { "held_out" };
        let kind = match (self.sudden, self.opens) {
            (true, _) => "sudden",
            (false, Some(_)) => "gradual",
            (false, None) => "without",
        };
        let opens = self.opens.map_or("-".into(), |at| at.as_millis().to_string());
        format!("{}\t{half}\t{kind}\t{opens}\n", self.name)
    }
}

/// `labels.tsv` as the recordings in `folder` have it.
pub(crate) fn labels(folder: &Path) -> (Vec<Label>, String) {
    let listed = std::fs::read_dir(folder).expect("the recordings' folder");
    let mut files: Vec<PathBuf> = listed.map(|file| file.expect("a file").path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "rec"));
    files.sort();
    let labels: Vec<Label> = files.iter().map(|file| Label::of(file)).collect();
    let lines: String = labels.iter().map(Label::line).collect();
    (labels, format!("recording\thalf\tkind\topens_ms\n{lines}"))
}
