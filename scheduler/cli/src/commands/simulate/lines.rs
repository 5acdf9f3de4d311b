//! `stokehold simulate --stdio`: reads and writes the lines of an outside plant.

use std::io::{BufRead, Read as _, Write};

use anyhow::Context as _;
use sim::stdio::Session;

use crate::exit::Stop;
use crate::output::OutputClosed;

/// A second of measurements is some hundred bytes.
const LONGEST_LINE_BYTES: u64 = 1 << 20;

/// Answers each line at once, until the input ends.
pub(super) fn talk(input: &mut impl BufRead, output: &mut impl Write) -> anyhow::Result<()> {
    let mut session = Session::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = input
            .by_ref()
            .take(LONGEST_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .context("read standard input")?;
        if read == 0 {
            return Ok(());
        }
        let answer = session.line(&line);
        let answer = answer.map_err(|wrong| Stop::Usage(wrong.to_string()))?;
        let written = writeln!(output, "{answer}").and_then(|()| output.flush());
        match written {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Err(OutputClosed.into()),
            Err(e) => return Err(anyhow::Error::new(e).context("write to standard output")),
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"{"policy":{"max_replicas":9}}"#;
    const SECOND: &str =
        r#"{"t":0,"active":1,"queued":0,"arrivals":1,"completions":1,"replicas_ready":1}"#;

    #[test]
    fn each_line_is_answered_and_the_end_of_the_input_is_the_end() {
        let mut output = Vec::new();
        let input = format!("{POLICY}\n{SECOND}\r\n{SECOND}");
        talk(&mut input.as_bytes(), &mut output).expect("talked");
        let answers = String::from_utf8(output).expect("text");
        assert_eq!(answers.lines().count(), 3);
        assert_eq!(answers.lines().next(), Some(r#"{"ready":true}"#));
    }

    #[test]
    fn a_line_that_is_no_json_is_a_mistake_of_the_caller_and_named_by_its_number() {
        let mut output = Vec::new();
        let input = format!("{POLICY}\n{SECOND}\nnonsense\n{SECOND}\n");
        let error = talk(&mut input.as_bytes(), &mut output).expect_err("refused");
        assert!(matches!(error.downcast_ref(), Some(Stop::Usage(_))));
        assert!(
            error.to_string().starts_with("line 3: not a line of JSON"),
            "{error}"
        );
        assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 2);
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_memory_than_a_line_may() {
        let endless = std::io::repeat(b' ');
        let mut input = std::io::BufReader::new(endless);
        let error = talk(&mut input, &mut Vec::new()).expect_err("refused");
        assert!(
            error.to_string().starts_with("line 1: not a line of JSON"),
            "{error}"
        );
    }
}
