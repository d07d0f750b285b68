//! What an import answers.

use fusebox_actors::import::Imported;
use fusebox_state::OpId;
use schemars::JsonSchema;
use serde::Serialize;

/// How many lines are named of each kind.
pub(super) const NAMED_MAX: usize = 100;

/// The answer to an import.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ImportAnswer {
    /// Lines were taken, or refused one by one.
    Imported(ImportDone),
    /// With `check`: all lines are understood, and none was taken.
    Checked(ImportChecked),
}

/// Lines that were only read.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ImportChecked {
    /// The backend.
    pub(super) backend: String,
    /// How many lines there are.
    pub(super) understood: usize,
    /// The most bytes that the lines of one request may have together.
    pub(super) body_max: u64,
}

/// What became of the lines.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ImportDone {
    /// The backend.
    pub(super) backend: String,
    #[serde(flatten)]
    pub(super) report: ImportReport,
}

/// What became of the lines, in numbers, and by name if something is left to do.
#[derive(Default, Serialize, JsonSchema)]
pub(crate) struct ImportReport {
    /// Calls that wait in the queue now.
    imported: u64,
    /// Those of them that may have been applied.
    in_doubt: u64,
    /// Calls that are dead letters now.
    dead: u64,
    /// Calls taken that were salvaged from a damaged store.
    salvaged: u64,
    /// Calls that were there already, and were passed over.
    known: u64,
    /// Calls that are taken only by force: their lanes were, or may have been, written since the export.
    wants_force: u64,
    /// The first 100 of them.
    lanes_written: Vec<LaneWritten>,
    /// The calls that were refused.
    refused: Vec<RefusedLine>,
    /// Lines behind them, which were not tried.
    not_tried: usize,
}

/// A call whose lane was, or may have been, written since the export.
#[derive(Serialize, JsonSchema)]
struct LaneWritten {
    /// The number of the line.
    line: usize,
    /// The call's name.
    op_id: OpId,
    /// Its lane, for people.
    lane: String,
}

/// A call that was refused.
#[derive(Serialize, JsonSchema)]
struct RefusedLine {
    /// The number of the line.
    line: usize,
    /// The call's name.
    op_id: OpId,
    /// Why.
    why: String,
}

impl ImportReport {
    /// The report of these lines: the number of each, the name and the lane of its call, and whether that was salvaged.
    pub(super) fn of(lines: Vec<(usize, OpId, String, bool)>, results: Vec<Imported>) -> Self {
        let mut report = Self { not_tried: lines.len() - results.len(), ..Self::default() };
        for ((line, op_id, lane, is_salvaged), result) in lines.into_iter().zip(results) {
            let is_taken = match result {
                Imported::Waits { in_doubt } => {
                    report.imported += 1;
                    report.in_doubt += u64::from(in_doubt);
                    true
                }
                Imported::Dead => {
                    report.dead += 1;
                    true
                }
                Imported::Known => {
                    report.known += 1;
                    false
                }
                Imported::WantsForce => {
                    report.wants_force += 1;
                    if report.lanes_written.len() < NAMED_MAX {
                        report.lanes_written.push(LaneWritten { line, op_id, lane });
                    }
                    false
                }
                Imported::Refused(why) => {
                    report.refused.push(RefusedLine { line, op_id, why });
                    false
                }
            };
            report.salvaged += u64::from(is_taken && is_salvaged);
        }
        report
    }
}
