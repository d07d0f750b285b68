//! What was measured, and what it may be.

/// A figure and its gate.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) direct: String,
    pub(crate) ours: String,
    pub(crate) value: f64,
    pub(crate) gate: Gate,
}

pub(crate) enum Gate {
    AtMost(f64),
    AtLeast(f64),
    /// It is only shown.
    None,
}

impl Figure {
    pub(crate) fn holds(&self) -> bool {
        match self.gate {
            Gate::AtMost(most) => self.value <= most,
            Gate::AtLeast(least) => self.value >= least,
            Gate::None => true,
        }
    }

    pub(crate) fn print(&self) {
        let gate = match self.gate {
            Gate::AtMost(most) => format!("<= {most}"),
            Gate::AtLeast(least) => format!(">= {least}"),
            Gate::None => "none".to_owned(),
        };
        let Self { what, direct, ours, value, .. } = self;
        println!("{what:<44} {direct:>14} {ours:>14} {value:>8.3} {gate:>8}");
    }
}
