//! What is wrong with a name, and which one would do. Pure; the rules themselves stand with the names
//! (see `ids`).

/// The characters of a kind of name: letters, digits and some marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alphabet {
    pub(crate) most: usize,
    /// Small letters only.
    pub(crate) lower: bool,
    pub(crate) marks: &'static str,
}

impl Alphabet {
    fn has(&self, c: char) -> bool {
        let letter = if self.lower {
            c.is_ascii_lowercase()
        } else {
            c.is_ascii_alphabetic()
        };
        letter || c.is_ascii_digit() || self.marks.contains(c)
    }
}

/// The first thing that is wrong, to stand after "it"; empty where all characters are fine and the
/// rule is another one.
pub(crate) fn problem(text: &str, alphabet: &Alphabet) -> String {
    if text.is_empty() {
        return "is empty".to_owned();
    }
    if let Some((at, c)) = text.chars().enumerate().find(|(_, c)| !alphabet.has(*c)) {
        return format!("holds {c:?} as character {}", at + 1);
    }
    let length = text.chars().count();
    if length > alphabet.most {
        return format!("has {length} characters");
    }
    String::new()
}

/// The name that is nearest: what may not stand in it becomes one `-`, and it is cut to its length.
/// `None` where nothing of it could stay.
pub(crate) fn suggestion(
    text: &str,
    alphabet: &Alphabet,
    valid: impl Fn(&str) -> bool,
) -> Option<String> {
    let mut name = String::new();
    // What is cut off needs no reading.
    for c in text.chars().take(alphabet.most * 2) {
        let c = if alphabet.lower {
            c.to_ascii_lowercase()
        } else {
            c
        };
        if alphabet.has(c) {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let plain = |c: char| !c.is_ascii_alphanumeric();
    let name = name.trim_matches(plain);
    let name = name[..name.len().min(alphabet.most)].trim_end_matches(plain);
    valid(name).then(|| name.to_owned())
}
