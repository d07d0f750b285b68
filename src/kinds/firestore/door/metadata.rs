//! The metadata of calls: what is read of them, and what goes on.

use std::time::Duration;

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};

use super::{
    class::{Method, Shape},
    core::Core,
    pool::Upstream,
    telling::Told,
    who::Principal,
};

/// The most bytes of metadata, as Firestore has it.
pub(super) const METADATA_MAX: usize = 16 << 10;

const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What is between two neighbours, and not passed on.
pub(super) const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "host",
    "keep-alive",
    "proxy-connection",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Core {
    /// The metadata as they go on.
    pub(super) async fn headers(
        &self,
        upstream: &Upstream,
        method: Method,
        by: &Principal,
        mut headers: HeaderMap,
    ) -> Result<HeaderMap, Told> {
        strip(&mut headers);
        headers.insert(AUTHORIZATION, self.credential(upstream, by).await?);
        if method.shape == Shape::Lasting {
            // Its messages are read: the server is not asked to compress.
            headers.remove(ACCEPT_ENCODING);
        }
        if method.is_timed() {
            // What is given up here must not be carried out there. A client's patience is no reason to give it up.
            headers.insert(TIMEOUT, timeout_value(self.backend.timeout()));
        }
        Ok(headers)
    }

    /// The credential that a call goes on with.
    pub(super) async fn credential(
        &self,
        upstream: &Upstream,
        by: &Principal,
    ) -> Result<HeaderValue, Told> {
        if let Some(own) = &by.own {
            return Ok(own.clone());
        }
        let client = &upstream.connector.shared.client;
        let asked = tokio::time::timeout(self.backend.timeout(), client.credential()).await;
        let Ok(Ok(credential)) = asked else {
            let why = "sends no credentials";
            return Err(Told::not_executed(self.backend.name(), why, self.backend.retry_after()));
        };
        let mut value = HeaderValue::from_bytes(credential.as_bytes())
            .map_err(|_| Told::fault("the credentials cannot be sent in a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Takes out what is not passed on.
pub(super) fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Metadata above what Firestore takes are refused here.
pub(super) fn check_metadata(headers: &HeaderMap) -> Result<(), Told> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes <= METADATA_MAX {
        return Ok(());
    }
    Err(Told::too_large(format_args!(
        "{bytes} bytes of metadata: at most {METADATA_MAX} are allowed"
    )))
}

/// How long the client waits, if it says so.
pub(super) fn asked_time(headers: &HeaderMap) -> Result<Option<Duration>, Told> {
    let Some(value) = headers.get(&TIMEOUT) else { return Ok(None) };
    let wrong = || Told::malformed("grpc-timeout is not a valid time");
    let text = value.to_str().map_err(|_| wrong())?;
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|digit| digit.is_ascii_digit())
    {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let time = match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(wrong()),
    };
    Ok(Some(time))
}

/// A time as gRPC writes it: at most eight digits and a unit.
fn timeout_value(time: Duration) -> HeaderValue {
    let (micros, millis, seconds) = (time.as_micros(), time.as_millis(), time.as_secs());
    let text = if micros < 100_000_000 {
        format!("{micros}u")
    } else if millis < 100_000_000 {
        format!("{millis}m")
    } else {
        format!("{}S", seconds.min(99_999_999))
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &'static str) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(text))]);
        asked_time(&headers).unwrap()
    }

    #[test]
    fn every_unit_of_a_timeout_is_read_and_what_is_written_is_read_again() {
        for (text, millis) in [
            ("1H", 3_600_000),
            ("2M", 120_000),
            ("3S", 3_000),
            ("4m", 4),
            ("5000u", 5),
            ("6000000n", 6),
        ] {
            assert_eq!(asked(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for seconds in [1, 99, 100, 99_999, 100_000, 99_999_999] {
            let time = Duration::from_secs(seconds);
            let headers = HeaderMap::from_iter([(TIMEOUT, timeout_value(time))]);
            assert_eq!(asked_time(&headers).unwrap(), Some(time));
        }
        for wrong in ["", "S", "1", "1x", "-1S", "123456789S"] {
            let headers = HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(wrong))]);
            assert!(asked_time(&headers).is_err(), "{wrong}");
        }
        assert_eq!(asked_time(&HeaderMap::new()).unwrap(), None);
    }
}
