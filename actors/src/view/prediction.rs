//! What is shown of failure prediction.

use fusebox_state::{UnixMillis, predict::State};

use super::Lenient;

/// Whether a backend is about to fail, why, and how often that was right since the daemon's start. It acts on nothing.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct PredictionView {
    /// `ok`, `watch`, `at_risk`, `unproven` (at risk, from one whose last alarms were mostly wrong),
    /// `too_little_traffic`, or `off`.
    pub state: Lenient<State>,
    /// The limit that is near, with its figures; `None` if none is.
    pub because: Option<String>,
    /// In how many seconds the 90th percentile of response times reaches the timeout if it goes on like this; at most
    /// 120.
    pub eta_s: Option<u64>,
    /// Since when the state holds.
    pub since: UnixMillis,
    /// How near the nearest limit is, between 0 and 1.
    pub risk: f64,
    /// Alarms that the breaker's opening followed within 30 s.
    pub hits: u64,
    /// Alarms that none followed.
    pub false_alarms: u64,
    /// Openings without an alarm in the 30 s before.
    pub missed: u64,
    /// Openings that nothing announced.
    pub unpredictable: u64,
}

impl PredictionView {
    /// What is said of a backend that a limit is near to: `at risk: p90 118 ms of a timeout of 200 ms for 4 s; if it
    /// goes on like this, p90 reaches the timeout in 20 s`. `None` of any other.
    pub fn told(&self) -> Option<String> {
        let state = match self.state.known()? {
            State::Watch => "worth watching",
            State::AtRisk => "at risk",
            State::Unproven => "at risk, though most of the last alarms were false",
            State::Off | State::TooLittleTraffic | State::Ok => return None,
        };
        let because = self.because.as_deref().unwrap_or("no limit is near any longer");
        let when = self.eta_s.map_or(String::new(), |seconds| {
            format!("; if this continues, p90 reaches the timeout in {seconds} s")
        });
        Some(format!("{state}: {because}{when}"))
    }

    /// The same in sentences, with what earlier predictions were worth; none if no limit is near.
    pub(crate) fn story(&self) -> Vec<String> {
        let Some(told) = self.told() else { return Vec::new() };
        let Self { hits, false_alarms, missed, unpredictable, .. } = self;
        let score = format!(
            "Since the start, {hits} of {} such alarms were right. The breaker opened {} times: {missed} times without \
             an alarm before, and {unpredictable} times without any sign that could have caused an alarm.",
            hits + false_alarms,
            hits + missed + unpredictable
        );
        vec![format!("It is {told}."), score]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_told_with_its_reason_and_its_score() {
        let mut view = PredictionView {
            state: State::AtRisk.into(),
            because: Some("p90 118 ms of a timeout of 200 ms for 4 s".into()),
            eta_s: Some(20),
            hits: 12,
            false_alarms: 1,
            missed: 1,
            unpredictable: 4,
            ..PredictionView::default()
        };
        assert_eq!(
            view.story(),
            [
                "It is at risk: p90 118 ms of a timeout of 200 ms for 4 s; if this continues, p90 reaches the timeout \
                 in 20 s.",
                "Since the start, 12 of 13 such alarms were right. The breaker opened 17 times: 1 times without an \
                 alarm before, and 4 times without any sign that could have caused an alarm.",
            ]
        );
        view.state = State::Ok.into();
        assert_eq!((view.told(), view.story().len()), (None, 0));
    }
}
