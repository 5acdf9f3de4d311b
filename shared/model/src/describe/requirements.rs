//! `requirements.txt` as lines. Pure.

/// The requirements, one pip line each, without comments and joined where `\` continues a line.
///
/// Option lines (`--extra-index-url https://token@...`) are left out: they are no requirements, they
/// may hold credentials, and a description is shown to more people than the file is.
pub(super) fn requirements(text: &str) -> Vec<String> {
    let joined = text.replace("\\\r\n", " ").replace("\\\n", " ");
    joined
        .lines()
        .map(|line| without_comment(line).trim())
        .filter(|line| !line.is_empty() && !line.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

/// A `#` starts a comment at a line's start and after white space, as pip has it.
fn without_comment(line: &str) -> &str {
    let comment = line.char_indices().find(|&(at, c)| {
        c == '#'
            && line[..at]
                .chars()
                .next_back()
                .is_none_or(char::is_whitespace)
    });
    comment.map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::requirements;

    #[test]
    fn comments_blanks_and_options_are_left_out_and_continued_lines_joined() {
        let text = "# head\n\nmlflow==3.17.2\nnumpy>=2 # why\r\n--index-url https://t@x/\n-r o.txt\n\
                    pkg @ https://h/p.whl#sha256=1\nskops \\\n  ==0.11\n";
        assert_eq!(
            requirements(text),
            [
                "mlflow==3.17.2",
                "numpy>=2",
                "pkg @ https://h/p.whl#sha256=1",
                "skops    ==0.11"
            ]
        );
    }
}
