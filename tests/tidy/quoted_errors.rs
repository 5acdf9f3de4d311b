//! What `docs/troubleshooting.md` quotes is said by the programs: each text in code quotes of its headings
//! and of its table of answers stands in the source, piece by piece between the `…`.

use std::path::Path;

use super::root;

const DOCUMENT: &str = "docs/troubleshooting.md";

/// A text as it is compared: without line breaks, escapes, code quotes and what stands for a value.
fn plain(text: &str) -> String {
    let kept = text.replace(['`', '\\'], "");
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read_sources(folder: &Path, all: &mut String) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("source");
            all.push_str(&plain(&text));
            all.push('\n');
        }
    }
}

/// The code spans of a line: of a table's row only those of its second cell.
fn quotes(line: &str) -> Vec<&str> {
    let text = if let Some(heading) = line.strip_prefix("### ") {
        heading
    } else if line.starts_with("| 4") || line.starts_with("| 5") {
        line.split('|').nth(2).unwrap_or_default()
    } else {
        return Vec::new();
    };
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_error_that_is_quoted_is_one_that_the_programs_say() {
    let mut sources = String::new();
    for folder in ["shared", "scheduler", "agent"] {
        read_sources(&root().join(folder), &mut sources);
    }
    let document = std::fs::read_to_string(root().join(DOCUMENT)).expect("document");
    let mut pieces = 0;
    let mut strange = Vec::new();
    for (number, line) in document.lines().enumerate() {
        for quote in quotes(line) {
            for piece in quote.split('…').map(plain) {
                let piece = piece.trim_matches([' ', ':', ',', '(', ')', '.']);
                // A word alone proves nothing.
                if !piece.contains(' ') {
                    continue;
                }
                pieces += 1;
                if !sources.contains(piece) {
                    strange.push(format!("line {}: {piece}", number + 1));
                }
            }
        }
    }
    assert!(pieces > 50, "only {pieces} pieces were looked for");
    assert!(
        strange.is_empty(),
        "{DOCUMENT} quotes what no program says:\n{}",
        strange.join("\n")
    );
}
