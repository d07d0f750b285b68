//! Which calls are recorded from the start.

use std::fmt;

use fusebox_actors::trace::Sampling;

/// The samplers of the specification, by its names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sampler {
    /// Whether a caller's own decision is followed.
    parent_based: bool,
    /// The part of traces that is recorded if no caller decided, in 0..=1.
    ratio: f64,
}

impl Default for Sampler {
    /// `parentbased_always_on`.
    fn default() -> Self {
        Self { parent_based: true, ratio: 1.0 }
    }
}

impl Sampler {
    /// The sampler of that name, with its argument. `None` if there is none of that name.
    ///
    /// # Errors
    /// The argument is not a part of one; the sampler then takes all.
    pub(super) fn named(
        name: &str,
        argument: Option<&str>,
    ) -> Option<Result<Self, (Self, String)>> {
        let (parent_based, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let of = |ratio| Self { parent_based, ratio };
        match kind {
            "always_on" => Some(Ok(of(1.0))),
            "always_off" => Some(Ok(of(0.0))),
            "traceidratio" => {
                let text = argument.unwrap_or("1");
                let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                Some(ratio.map(of).ok_or_else(|| {
                    let wrong = format!(
                        "OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1, got {text:?}: fusebox samples all traces"
                    );
                    (of(1.0), wrong)
                }))
            }
            _ => None,
        }
    }

    /// The decision as data.
    pub(super) fn sampling(self, keeps: bool) -> Sampling {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a part of 2^63, which a float has exactly"
        )]
        let bound = (self.ratio * Sampling::ALL as f64) as u64;
        Sampling { parent_based: self.parent_based, bound, keeps }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.parent_based { "parentbased_" } else { "" })?;
        match self.ratio {
            1.0.. => f.write_str("always_on"),
            ratio if ratio <= 0.0 => f.write_str("always_off"),
            ratio => write!(f, "traceidratio({ratio})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use fusebox_actors::trace::CallTrace;
    use fusebox_state::SpanRef;

    use super::*;

    fn named(name: &str, argument: &str) -> Sampling {
        sampler(name, argument).sampling(true)
    }

    fn sampler(name: &str, argument: &str) -> Sampler {
        Sampler::named(name, Some(argument)).unwrap().unwrap()
    }

    fn remote(sampled: bool) -> CallTrace {
        let parent = SpanRef { trace_id: u128::MAX, span_id: 1, sampled };
        CallTrace { parent, is_remote: true, ..CallTrace::new("/") }
    }

    #[test]
    fn a_parent_decides_where_it_is_asked() {
        assert!(named("parentbased_always_off", "").samples(&remote(true)));
        assert!(!named("parentbased_always_on", "").samples(&remote(false)));
        assert!(named("always_on", "").samples(&remote(false)));
        assert!(!named("always_off", "").samples(&remote(true)));
        assert!(Sampler::default().sampling(true).samples(&CallTrace::new("/")));
    }

    #[test]
    fn the_ratio_is_that_of_the_traces() {
        let sampler = named("traceidratio", "0.25");
        fastrand::seed(7);
        let taken = (0..10_000).filter(|_| sampler.samples(&CallTrace::new("/"))).count();
        assert!((2_300..2_700).contains(&taken), "{taken}");
        let none = named("traceidratio", "0");
        assert!((0..1_000).all(|_| !none.samples(&CallTrace::new("/"))));
        // What OpenTelemetry's own SDK decides of these ids.
        for (id, taken) in [(0x3fff_ffff_ffff_ffff, true), (0x4000_0000_0000_0000, false)] {
            let parent = SpanRef { trace_id: 1 << 100 | id, span_id: 1, sampled: true };
            let trace = CallTrace { parent, ..CallTrace::new("/") };
            assert_eq!(sampler.samples(&trace), taken, "{id:x}");
        }
    }

    #[test]
    fn a_wrong_name_or_argument_is_told() {
        assert!(Sampler::named("sometimes", None).is_none());
        let (all, why) = Sampler::named("traceidratio", Some("7")).unwrap().unwrap_err();
        assert!(all.sampling(true).samples(&CallTrace::new("/")) && why.contains("\"7\""), "{why}");
        assert_eq!(
            sampler("parentbased_traceidratio", "0.5").to_string(),
            "parentbased_traceidratio(0.5)"
        );
    }
}
