//! The cron jobs. Each only casts a message; see the parent's page for why.

use ractor::ActorRef;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::message::RecoveryMessage;

/// A schedule and the message that it brings.
type CronJob = (&'static str, fn() -> RecoveryMessage);

/// What runs when: seconds, minutes, hours, day of month, month, day of week; UTC.
const JOBS: [CronJob; 3] = [
    ("*/30 * * * * *", || RecoveryMessage::SweepDue),
    ("0 0 * * * *", || RecoveryMessage::ReportDue),
    ("*/5 * * * * *", || RecoveryMessage::NudgeDue),
];

/// Starts the scheduler with every job.
pub(super) async fn schedule(
    recovery: &ActorRef<RecoveryMessage>,
) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    for (when, message) in JOBS {
        let recovery = recovery.clone();
        let job = Job::new(when, move |_, _| {
            // The actor is gone only while it is being restarted; the next tick finds its heir.
            drop(recovery.send_message(message()));
        })?;
        scheduler.add(job).await?;
    }
    scheduler.start().await?;
    Ok(scheduler)
}
