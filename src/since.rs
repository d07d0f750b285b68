//! A time of the past, as people write it: how long ago, or when.

use fusebox_state::UnixMillis;

/// The time that `text` means at `now`: `2h` ago, or `2026-11-23T16:00:00Z`.
///
/// # Errors
/// What would be right.
pub(crate) fn parse(text: &str, now: UnixMillis) -> Result<UnixMillis, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago = humantime::parse_duration(text).map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        format!(
            "must be a duration such as 2h or a time such as 2026-11-23T16:00:00Z, got {shown:?}"
        )
    })?;
    let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    Ok(UnixMillis::new(now.get().saturating_sub(ago)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_how_long_ago_or_when() {
        let now = UnixMillis::new(1_790_000_000_000);
        assert_eq!(parse("2h", now), Ok(UnixMillis::new(1_789_992_800_000)));
        assert_eq!(parse("1000y", now), Ok(UnixMillis::new(0)));
        assert_eq!(parse("2026-09-21T14:13:20Z", now), Ok(UnixMillis::new(1_790_000_000_000)));
        let refused = parse("yesterday", now).unwrap_err();
        assert!(refused.ends_with("got \"yesterday\""), "{refused}");
    }
}
