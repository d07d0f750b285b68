//! Colour for a terminal, nothing for a pipe; and how wide a terminal is.

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// To be watched.
    Doubtful,
    /// Down.
    Bad,
    /// A heading.
    Strong,
    /// Of second importance.
    Faint,
    /// Ordinary text.
    Plain,
}

impl Tone {
    /// The tone of a state's word.
    pub(crate) fn of_state(text: &str) -> Self {
        match text.split_whitespace().next() {
            Some("CLOSED" | "HEALTHY") => Self::Good,
            Some("HALF_OPEN" | "OPENING" | "DEGRADED") => Self::Doubtful,
            Some("OPEN" | "OFFLINE" | "CRITICAL" | "EMERGENCY") => Self::Bad,
            _ => Self::Plain,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Doubtful => "33",
            Self::Bad => "31",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Plain => "",
        }
    }
}

/// The stream to which text goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paper {
    /// Whether it takes colours.
    pub(crate) colour: bool,
    /// Its columns; `None` in a pipe, in which nothing is folded or left out.
    pub(crate) width: Option<usize>,
}

impl Paper {
    /// A pipe.
    #[cfg(test)]
    pub(crate) const PIPE: Self = Self { colour: false, width: None };

    /// Standard output. `NO_COLOR` is obeyed.
    pub(crate) fn of_stdout() -> Self {
        if !super::print::on_terminal() {
            return Self { colour: false, width: None };
        }
        let size = ratatui::crossterm::terminal::size();
        let width = size.map_or(80, |(columns, _)| usize::from(columns).max(20));
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour, width: Some(width) }
    }

    /// `text` in its tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || tone == Tone::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("\u{1b}[{}m{text}\u{1b}[0m", tone.code())
    }

    /// `text` folded between words, each line but the first indented by `indent`.
    pub(crate) fn fold(self, text: &str, indent: usize) -> Vec<String> {
        fold(text, self.width.unwrap_or(usize::MAX), indent)
    }
}

/// `text` in lines of at most `width` letters, folded between words, each but the first indented by
/// `indent`. A word that is longer than a line is cut.
pub(crate) fn fold(text: &str, width: usize, indent: usize) -> Vec<String> {
    let margin = " ".repeat(indent.min(width / 2));
    let (mut lines, mut line, mut count, mut begun) = (Vec::new(), String::new(), 0, false);
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        while begun && count + 1 + word.len() > width {
            lines.push(std::mem::replace(&mut line, margin.clone()));
            (count, begun) = (margin.len(), false);
        }
        if begun {
            line.push(' ');
            count += 1;
        }
        while count + word.len() > width {
            let rest = word.split_off((width - count).max(1).min(word.len()));
            line.extend(word);
            lines.push(std::mem::replace(&mut line, margin.clone()));
            (word, count) = (rest, margin.len());
        }
        count += word.len();
        line.extend(word);
        begun = true;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_takes_no_colour_and_folds_nothing() {
        assert_eq!(Paper::PIPE.paint(Tone::Bad, "OPEN"), "OPEN");
        assert_eq!(Paper::PIPE.fold(&"word ".repeat(100), 2).len(), 1);
        let paper = Paper { colour: true, width: Some(80) };
        assert_eq!(paper.paint(Tone::of_state("OPEN (forced)"), "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(paper.paint(Tone::of_state("12"), "x"), "x");
    }

    #[test]
    fn text_is_folded_between_words_and_long_words_are_cut() {
        assert_eq!(fold("one two three", 9, 2), ["one two", "  three"]);
        assert_eq!(fold("one", 9, 2), ["one"]);
        assert_eq!(fold("", 9, 2), [""]);
        assert_eq!(fold("abcdefghijkl", 5, 1), ["abcde", " fghi", " jkl"]);
        assert_eq!(fold("ä b abcdefghijkl", 5, 0), ["ä b", "abcde", "fghij", "kl"]);
        for width in 1..40 {
            let text = "a bb ccc dddddddd eeeeeeeeeeeeeeeeeeeeeeeeeeeee f";
            for line in fold(text, width, 4) {
                assert!(line.chars().count() <= width, "{width}: {line:?}");
            }
        }
    }
}
