//! Who looks. Views show what everybody may see; one that is made for an admin is opened, which adds the
//! servers' words (see [`Words`]). What is not opened here stays closed.

use fusebox_state::{
    Words,
    breaker::{ErrorRecord, TransitionRecord},
};

use crate::view::{
    BackendView, BreakerView, ExplainView, QueuePage, QueuedCallView, ResilienceView,
};

/// What may have a server's words.
pub trait Open {
    /// Shows the servers' words from now on.
    fn open(&mut self);

    /// The same, opened for an admin.
    #[must_use]
    fn shown_to(mut self, admin: bool) -> Self
    where
        Self: Sized,
    {
        if admin {
            self.open();
        }
        self
    }
}

impl<T: Open> Open for Vec<T> {
    fn open(&mut self) {
        self.iter_mut().for_each(Open::open);
    }
}

impl<T: Open> Open for Option<T> {
    fn open(&mut self) {
        self.iter_mut().for_each(Open::open);
    }
}

impl Open for Words {
    fn open(&mut self) {
        Self::open(self);
    }
}

impl Open for ErrorRecord {
    fn open(&mut self) {
        self.message.open();
    }
}

impl Open for TransitionRecord {
    fn open(&mut self) {
        self.transition.last_errors.open();
    }
}

impl Open for BreakerView {
    fn open(&mut self) {
        self.last_transition.open();
    }
}

impl Open for BackendView {
    fn open(&mut self) {
        self.alerts.open();
        self.breaker.open();
        self.connector.warnings.open();
    }
}

impl Open for ResilienceView {
    fn open(&mut self) {
        self.backends.values_mut().for_each(Open::open);
        self.settings_left_out.open();
        self.alert_command_fails.open();
    }
}

impl Open for ExplainView {
    fn open(&mut self) {
        self.story.open();
        self.breaker.open();
        self.last_errors.open();
        self.transitions.open();
        self.outage.open();
    }
}

impl Open for QueuedCallView {
    fn open(&mut self) {
        self.last_error.open();
    }
}

impl Open for QueuePage {
    fn open(&mut self) {
        self.calls.open();
    }
}
