//! Whether what an operator asks for may be done.
//!
//! Every error names the key as a path, the value, and what would be right.

use std::time::Duration;

use super::{
    Fault, Faults,
    wanted::{AbortOn, Class, FaultOrder, Kind, Order},
};

/// For how long faults strike, if the order does not say.
const LASTING: Duration = Duration::from_secs(5 * 60);
/// The shortest and the longest time for which they do.
const LASTING_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60 * 60));
/// The largest share of attempts that is struck without force.
const RATE_UNFORCED: f64 = 0.5;
/// How many attempts are held up at once, if the order does not say, and at most without force.
const DELAYED: u32 = 10;
/// The same by force.
const DELAYED_FORCED: u32 = 1_000;
/// The longest that one attempt is held up.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// The most faults of one order.
const FAULTS_MAX: usize = 16;
/// The longest reason, code or baggage, in bytes.
const TEXT_MAX: usize = 256;

/// What may be ordered of one backend.
#[derive(Clone, Copy, Debug)]
pub struct Permitted {
    /// The system is CRITICAL without it.
    pub is_critical: bool,
    /// The longest that one of its attempts may take.
    pub timeout: Duration,
    /// A random number, for an order without a seed.
    pub random: u64,
}

/// What is wrong with an order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct Wrong {
    /// The key's path, such as `faults[0].rate`.
    pub key: String,
    /// The value, and what would be right.
    pub what: String,
}

impl Wrong {
    fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }
}

impl Order {
    /// The faults, if they may be had.
    ///
    /// # Errors
    /// The first thing that is wrong, by its key.
    pub fn check(self, permitted: Permitted) -> Result<Faults, Wrong> {
        if self.faults.is_empty() {
            return Err(Wrong::new("faults", "it must name at least one fault, got none"));
        }
        if self.faults.len() > FAULTS_MAX {
            let what =
                format!("it must name at most {FAULTS_MAX} faults, got {}", self.faults.len());
            return Err(Wrong::new("faults", what));
        }
        if permitted.is_critical && !self.force {
            let what = "this backend is critical: chaos on a critical backend needs `force`";
            return Err(Wrong::new("force", what));
        }
        let lasting = match &self.lasting {
            None => LASTING,
            Some(text) => within("for", text, LASTING_RANGE)?,
        };
        let mut faults = Vec::with_capacity(self.faults.len());
        for (at, fault) in self.faults.iter().enumerate() {
            faults.push(fault.check(&format!("faults[{at}]"), self.force, permitted.timeout)?);
        }
        let counts = self.count.unwrap_or(true);
        if let Some(at) = faults.iter().position(|it| !counts && it.class == Some(Class::Ping)) {
            let what = "a failed ping always counts for the breaker: leave out `count`, or choose another class than \
                        `ping`";
            return Err(Wrong::new(format!("faults[{at}].class"), what));
        }
        let reason = short("reason", self.reason.clone().unwrap_or_default())?;
        let most = if self.force { DELAYED_FORCED } else { DELAYED };
        let delayed_max = self.max_active.unwrap_or(DELAYED);
        if !(1..=most).contains(&delayed_max) {
            let by = if self.force { "" } else { ", or at most 1000 with `force`" };
            let what = format!("it must be 1 to {most}{by}, got {delayed_max}");
            return Err(Wrong::new("max_active", what));
        }
        let abort_on = self.abort_on()?;
        if let Some(share) = self.abort_above
            && !(share > 0.0 && share <= 1.0)
        {
            let what = format!("it must be a share above 0 and at most 1, got {share}");
            return Err(Wrong::new("abort_above", what));
        }
        Ok(Faults {
            each: faults,
            lasting,
            seed: self.seed.unwrap_or(permitted.random),
            counts,
            reason,
            delayed_max,
            abort_on,
            abort_above: self.abort_above,
            forced: self.force,
            order: self,
        })
    }

    fn abort_on(&self) -> Result<AbortOn, Wrong> {
        let abort_on = match self.abort_on.as_deref() {
            None | Some("critical") => AbortOn::Critical,
            Some("emergency") => AbortOn::Emergency,
            Some("never") => AbortOn::Never,
            Some(other) => {
                let what = format!("it must be critical, emergency or never, got {other:?}");
                return Err(Wrong::new("abort_on", what));
            }
        };
        if abort_on != AbortOn::Critical && !self.force {
            let what = format!(
                "{:?} needs `force`; without `force`, it must be critical",
                abort_on.as_str()
            );
            return Err(Wrong::new("abort_on", what));
        }
        Ok(abort_on)
    }
}

impl FaultOrder {
    fn check(&self, at: &str, force: bool, timeout: Duration) -> Result<Fault, Wrong> {
        let key = |name: &str| format!("{at}.{name}");
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == self.kind);
        let kind = kind.ok_or_else(|| {
            let all = Kind::ALL.map(Kind::as_str).join(", ");
            Wrong::new(key("kind"), format!("it must be one of {all}, got {:?}", self.kind))
        })?;
        let rate = self.rate(&key("rate"), force)?;
        let class = self.class(&key("class"))?;
        if let Some(class) = class
            && let Some(why) = cannot_strike(kind, class)
        {
            let what = format!("{} cannot be used for {}: {why}", kind.as_str(), class.as_str());
            return Err(Wrong::new(key("class"), what));
        }
        let latency = match (&self.latency, kind.takes_latency()) {
            (Some(text), true) => {
                within(&key("latency"), text, (Duration::from_millis(1), LATENCY_MAX))?
            }
            (None, true) => {
                return Err(Wrong::new(
                    key("latency"),
                    "it is required for this kind: give a duration, such as 200ms",
                ));
            }
            (Some(text), false) => {
                return Err(unwanted(&key("latency"), text, kind, "latency, slow_drip"));
            }
            (None, false) => Duration::ZERO,
        };
        if latency > timeout {
            let what = format!(
                "{} is longer than the backend's timeout, {}: to make attempts time out, use the kind `timeout`",
                humantime::format_duration(latency),
                humantime::format_duration(timeout)
            );
            return Err(Wrong::new(key("latency"), what));
        }
        let jitter = match (&self.jitter, kind.takes_latency()) {
            (Some(text), true) => within(&key("jitter"), text, (Duration::ZERO, latency))?,
            (Some(text), false) => {
                return Err(unwanted(&key("jitter"), text, kind, "latency, slow_drip"));
            }
            (None, _) => Duration::ZERO,
        };
        if let (Some(code), false) = (&self.code, kind.takes_code()) {
            return Err(unwanted(&key("code"), code, kind, "error, reject"));
        }
        let code = self.code.clone().map(|code| short(&key("code"), code)).transpose()?;
        if let Some(member) = &self.only.baggage {
            short(&key("only.baggage"), member.clone())?;
            if member.is_empty() || member.contains([',', ';']) {
                let what = format!("it must be one member such as chaos=1, got {member:?}");
                return Err(Wrong::new(key("only.baggage"), what));
            }
        }
        let is_nobodys = matches!(class, Some(Class::Ping | Class::Replay));
        if is_nobodys && !self.only.is_empty() {
            let what = "pings and replay have no caller: leave out `only`";
            return Err(Wrong::new(key("only"), what));
        }
        Ok(Fault { kind, rate, latency, jitter, code, class, only: self.only.clone() })
    }

    fn rate(&self, key: &str, force: bool) -> Result<f64, Wrong> {
        let most = if force { 1.0 } else { RATE_UNFORCED };
        let right = if force {
            "a share above 0 and at most 1"
        } else {
            "a share above 0 and at most 0.5, or at most 1 with `force`"
        };
        match self.rate {
            None => Err(Wrong::new(key, format!("it is required: give {right}"))),
            Some(rate) if rate > 0.0 && rate <= most => Ok(rate),
            Some(rate) => Err(Wrong::new(key, format!("it must be {right}, got {rate}"))),
        }
    }

    fn class(&self, key: &str) -> Result<Option<Class>, Wrong> {
        let Some(word) = &self.class else { return Ok(None) };
        let class = Class::ALL.into_iter().find(|class| class.as_str() == word);
        class.map(Some).ok_or_else(|| {
            let all = Class::ALL.map(Class::as_str).join(", ");
            Wrong::new(key, format!("it must be one of {all}, got {word:?}"))
        })
    }
}

/// Why a fault of that kind makes no sense there.
fn cannot_strike(kind: Kind, class: Class) -> Option<&'static str> {
    match (class, kind) {
        (Class::Replay, Kind::Reject) => {
            Some("a write that was acknowledged as durable would become a dead letter")
        }
        (Class::Ping, Kind::Reject) => Some("a server that refuses a call has answered"),
        (Class::Ping, Kind::ResetAfter | Kind::SlowDrip | Kind::StaleConnection) => {
            Some("pings take only error, timeout, reset_before and latency")
        }
        _ => None,
    }
}

fn unwanted(key: &str, value: &str, kind: Kind, of: &str) -> Wrong {
    Wrong::new(
        key,
        format!("{:?} is only for {of}, not for {}: leave it out", value, kind.as_str()),
    )
}

/// A duration within these bounds.
fn within(key: &str, text: &str, (least, most): (Duration, Duration)) -> Result<Duration, Wrong> {
    let shown = |time| humantime::format_duration(time).to_string();
    let right = || format!("{} to {}", shown(least), shown(most));
    let time = humantime::parse_duration(text).map_err(|_| {
        Wrong::new(key, format!("{text:?} is not a duration: give one from {}", right()))
    })?;
    if time < least || time > most {
        return Err(Wrong::new(key, format!("it must be {}, got {}", right(), shown(time))));
    }
    Ok(time)
}

fn short(key: &str, text: String) -> Result<String, Wrong> {
    if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        let what = format!("it must be one line of at most {TEXT_MAX} bytes, got {}", text.len());
        return Err(Wrong::new(key, what));
    }
    Ok(text)
}
