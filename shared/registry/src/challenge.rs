//! `WWW-Authenticate`, as registries send it. Pure; what is not understood is skipped, not guessed.

use std::collections::BTreeMap;

/// Longer values are nobody's.
const MAX_BYTES: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of one header value, in their order; those of other schemes are left out.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = header.get(..MAX_BYTES).unwrap_or(header).trim_start();
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            // A comma, or a character that has no place here.
            let mut chars = rest.chars();
            chars.next();
            rest = chars.as_str().trim_start();
            continue;
        }
        let after = after.trim_start();
        match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = quoted_or_token(value.trim_start());
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.insert(word.to_ascii_lowercase(), value);
                }
                rest = after.trim_start();
            }
            None => {
                found.push((word.to_ascii_lowercase(), BTreeMap::new()));
                rest = after;
            }
        }
    }
    let known = found.into_iter().filter_map(|(scheme, mut parameters)| {
        let mut take = |name: &str| parameters.remove(name).filter(|text| !text.is_empty());
        match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer {
                realm: take("realm")?,
                service: take("service"),
                scope: take("scope"),
            }),
            _ => None,
        }
    });
    known.collect()
}

fn token(text: &str) -> (&str, &str) {
    let inside = |c: char| c.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(c);
    let end = text.find(|c| !inside(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn quoted_or_token(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let (value, rest) = token(text);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn what_registries_send_is_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        assert_eq!(
            parse(hub),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/nginx:pull,push")
            )]
        );
        assert_eq!(parse(r#"Basic realm="Registry Realm""#), [Challenge::Basic]);
        assert_eq!(
            parse(r#"basic realm=x , BEARER Realm = "https://a\"b" , error="invalid_token""#),
            [Challenge::Basic, bearer("https://a\"b", None, None)]
        );
        assert_eq!(parse(r#"Negotiate abc==, Digest qop="auth""#), []);
        assert_eq!(parse("Bearer service=x"), [], "a challenge without a realm");
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic_or_run_for_ever(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
