//! How what is known is drawn.
//!
//! ```text
//!   headline, reasons
//!   table of backends            always; scrolls with the selection
//!   trends of the selected one   from 18 lines on
//!   its story | events           side by side from 110 columns on; events from 14 lines on
//!   keys
//! ```

use std::collections::VecDeque;

use fusebox_state::UnixMillis;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Sparkline, SparklineBar, Wrap},
};

use super::seen::Seen;
use crate::{
    cli::board::{Board, headline, short, whole},
    terminal::{
        events::what,
        paint::{Tone, fold},
        table::ago,
    },
};

/// The fewest columns of a trend.
const TREND_WIDTH: u16 = 19;

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Good => Style::new().fg(Color::Green),
            Self::Doubtful => Style::new().fg(Color::Yellow),
            Self::Bad => Style::new().fg(Color::Red),
            Self::Strong => Style::new().add_modifier(Modifier::BOLD),
            Self::Faint => Style::new().add_modifier(Modifier::DIM),
            Self::Plain => Style::new(),
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, seen: &Seen, now: UnixMillis) {
    let area = frame.area();
    let head = head(seen, usize::from(area.width), usize::from(area.height), now);
    let rows = seen.count();
    let trends = if area.height >= 18 && rows > 0 { 3 } else { 0 };
    // At least a story of three lines, in what the head, the trends and the keys leave.
    let others = u16::try_from(head.len()).unwrap_or(u16::MAX).saturating_add(trends + 1 + 3);
    let table = u16::try_from(rows + 1).unwrap_or(u16::MAX);
    let table = table.min(area.height.saturating_sub(others).max(2));
    let [top, middle, trend_area, below, keys] = Layout::vertical([
        Constraint::Length(u16::try_from(head.len()).unwrap_or(u16::MAX)),
        Constraint::Length(if rows > 0 { table } else { 0 }),
        Constraint::Length(trends),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head), top);
    draw_table(frame, seen, middle);
    draw_trends(frame, seen, trend_area);
    draw_below(frame, seen, below);
    let help = " \u{2191}\u{2193} backend  q quit";
    frame.render_widget(Paragraph::new(help).style(Tone::Faint.style()), keys);
}

/// The headline and why the state is as it is; or that nobody is there.
fn head(seen: &Seen, width: usize, height: usize, now: UnixMillis) -> Vec<Line<'static>> {
    let room = (height / 8).max(1);
    let mut lines = Vec::new();
    if let Some(why) = &seen.lost {
        let last = seen.last_seen().map_or_else(
            || "never seen".to_owned(),
            |at| {
                let passed = u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
                let clock = clock(&at.to_string());
                format!("last seen {clock}, {} ago", ago(passed / 1_000 * 1_000))
            },
        );
        let text = format!("no daemon, {last}");
        let style = Tone::Bad.style().add_modifier(Modifier::BOLD);
        lines.extend(fold(&text, width, 2).into_iter().map(|line| Line::styled(line, style)));
        let why = fold(&format!("  {why}"), width, 2);
        lines
            .extend(why.into_iter().take(room).map(|line| Line::styled(line, Tone::Faint.style())));
        return lines;
    }
    let Some(view) = &seen.view else {
        return vec![Line::raw("connecting to the daemon")];
    };
    let (daemon, state, rest) = headline(view);
    let daemon = if width < 60 { String::new() } else { format!("{daemon}  ") };
    lines.push(Line::from(vec![
        Span::styled(daemon, Tone::Faint.style()),
        Span::styled(state.clone(), Tone::of_state(&state).style().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {rest}")),
    ]));
    let reasons = view.reasons.join("; ");
    if !reasons.is_empty() {
        let reasons = fold(&reasons, width, 2);
        let more = reasons.len() > room;
        for (at, line) in reasons.into_iter().take(room).enumerate() {
            let cut = more && at + 1 == room;
            let line = if cut { shortened(&format!("{line} \u{2026}"), width) } else { line };
            lines.push(Line::raw(line));
        }
    }
    lines
}

/// The time of day of an RFC 3339 time.
fn clock(at: &str) -> String {
    at.get(11..19).unwrap_or(at).to_owned()
}

/// `text` in at most `width` letters, with its end cut if it is longer.
fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}\u{2026}")
}

fn draw_table(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let Some(view) = &seen.view else { return };
    let board = Board::of(view, Some(usize::from(area.width).saturating_sub(2)));
    let selected = seen.selected().map_or(0, |(at, _)| at);
    let room = usize::from(area.height).saturating_sub(1);
    let first = (selected + 1).saturating_sub(room);
    let faint = seen.lost.is_some();
    let heads =
        board.shown.iter().map(|column| (column.width(), column.right, column.head, Tone::Strong));
    let mut lines = vec![line(" ", heads)];
    for at in first..(first + room).min(board.rest.len()) {
        let cells = board.shown.iter().filter_map(|column| {
            let cell = column.cells.get(at)?;
            let tone = if faint { Tone::Faint } else { cell.tone };
            Some((column.width(), column.right, cell.text.as_str(), tone))
        });
        let mut line = line(if at == selected { ">" } else { " " }, cells);
        if at == selected {
            line = line.style(Style::new().add_modifier(Modifier::REVERSED));
        }
        lines.push(line);
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn line<'a>(
    mark: &str,
    cells: impl Iterator<Item = (usize, bool, &'a str, Tone)>,
) -> Line<'static> {
    let mut spans = vec![Span::raw(mark.to_owned())];
    for (at, (width, right, text, tone)) in cells.enumerate() {
        let space = " ".repeat(width.saturating_sub(text.chars().count()));
        let gap = if at == 0 { " " } else { "  " };
        let (before, after) = if right { (space, String::new()) } else { (String::new(), space) };
        spans.push(Span::raw(format!("{gap}{before}")));
        spans.push(Span::styled(text.to_owned(), tone.style()));
        spans.push(Span::raw(after));
    }
    Line::from(spans)
}

/// A chart's name, points, how a point is written, the value of the whole height, and colour.
type Chart<'a> =
    (&'a str, &'a VecDeque<Option<u64>>, &'a dyn Fn(u64) -> String, Option<u64>, Color);

fn draw_trends(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let Some(trend) = seen.selected().and_then(|(_, name)| seen.trends.get(&name)) else { return };
    if area.height == 0 {
        return;
    }
    let plain = |value: u64| value.to_string();
    let percent = |value: u64| format!("{value} %");
    #[expect(clippy::cast_precision_loss, reason = "microseconds on a chart")]
    let millis = |value: u64| match value {
        0 => "-".to_owned(),
        value => format!("{} ms", short(value as f64 / 1_000.0)),
    };
    let all: [Chart<'_>; 4] = [
        ("calls/s", &trend.calls, &plain, None, Color::Cyan),
        ("failed", &trend.failed, &percent, Some(100), Color::Red),
        ("queued", &trend.queued, &plain, None, Color::Yellow),
        ("p99", &trend.p99, &millis, None, Color::Magenta),
    ];
    let fit = (area.width / TREND_WIDTH).clamp(1, 4);
    let areas = Layout::horizontal(vec![Constraint::Fill(1); fit.into()]).spacing(1).split(area);
    for ((name, points, shown, most, colour), area) in all.into_iter().zip(areas.iter()) {
        let last = points.back().copied().flatten();
        let last = last.map_or_else(|| "-".to_owned(), shown);
        let block = Block::new().borders(Borders::TOP).title(format!(" {name} {last} "));
        let skip = points.len().saturating_sub(area.width.into());
        let bars: Vec<SparklineBar> =
            points.iter().skip(skip).map(|point| (*point).into()).collect();
        let chart = Sparkline::default().block(block).data(bars).style(Style::new().fg(colour));
        let chart = match most {
            Some(most) => chart.max(most),
            None => chart,
        };
        frame.render_widget(chart, *area);
    }
}

/// The story of the selected backend, and what happened.
fn draw_below(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let Some((_, name)) = seen.selected() else {
        return draw_events(frame, seen, area);
    };
    if area.width >= 110 {
        let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1);
        let [left, right] = halves.areas(area);
        draw_story(frame, seen, &name, left);
        return draw_events(frame, seen, right);
    }
    if area.height < 8 {
        return draw_story(frame, seen, &name, area);
    }
    let wanted = story(seen, usize::from(area.width), area.height < 8).len() + 1;
    let most = usize::from(area.height) * 2 / 3;
    let height = u16::try_from(wanted.min(most)).unwrap_or(area.height);
    let [upper, lower] =
        Layout::vertical([Constraint::Length(height), Constraint::Min(0)]).areas(area);
    draw_story(frame, seen, &name, upper);
    draw_events(frame, seen, lower);
}

fn draw_story(frame: &mut Frame<'_>, seen: &Seen, name: &str, area: Rect) {
    let block = Block::new().borders(Borders::TOP).title(format!(" {name} "));
    let lines = story(seen, usize::from(area.width), area.height < 8);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// What the table has no room for (last, if room is scarce), the explanation, and what an operator can do.
fn story(seen: &Seen, width: usize, scarce: bool) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut add = |text: &str, tone: Tone| {
        let folded = fold(text, width, 2);
        lines.extend(folded.into_iter().map(|line| Line::styled(line, tone.style())));
    };
    let told = seen.story();
    let board = seen.view.as_ref().map(|view| Board::of(view, Some(width.saturating_sub(2))));
    let board = board.as_ref().zip(seen.selected());
    let rest = board.and_then(|(board, (at, _))| board.rest.get(at));
    let rest = rest.filter(|rest| !rest.is_empty()).map(|rest| rest.join(" \u{b7} "));
    if let (Some(rest), false) = (&rest, scarce) {
        add(rest, Tone::Faint);
    }
    for sentence in told.iter().flat_map(|told| whole(&told.story)) {
        add(&sentence, Tone::Plain);
    }
    if let (Some(rest), true) = (&rest, scarce) {
        add(rest, Tone::Faint);
    }
    for advice in told.iter().flat_map(|told| &told.advice) {
        add(advice, Tone::Faint);
    }
    lines
}

/// What happened, newest first.
fn draw_events(frame: &mut Frame<'_>, seen: &Seen, area: Rect) {
    let block = Block::new().borders(Borders::TOP).title(" events ");
    let lines: Vec<Line<'_>> = seen
        .events
        .iter()
        .rev()
        .take(area.height.into())
        .map(|event| {
            let at = event.at.map(|at| clock(&at.to_string())).unwrap_or_default();
            let backend = if event.backend.is_empty() { "-" } else { &event.backend };
            let line = format!("{at} {backend} {}", what(event));
            Line::raw(shortened(&line, area.width.into()))
        })
        .collect();
    let events = Paragraph::new(lines).block(block).wrap(Wrap { trim: false });
    frame.render_widget(events, area);
}
