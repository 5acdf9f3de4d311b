//! OpenAI's chat completions: the assistant repeats what the user said last, a word a token. Pure.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::input::{Params, Refusal};

pub(crate) const MODEL: &str = "probe";

pub(crate) struct Chat {
    id: String,
    model: String,
    tokens: Vec<String>,
    prompt_tokens: usize,
    pub(crate) stream: bool,
    include_usage: bool,
}

impl Chat {
    /// `number` becomes the id.
    pub(crate) fn parse(
        body: &Map<String, Value>,
        params: &Params,
        number: u64,
    ) -> Result<Self, Refusal> {
        let Some(messages) = body.get("messages").and_then(Value::as_array) else {
            return Err("messages: must be a list of {\"role\", \"content\"}".to_owned());
        };
        let texts: Vec<String> = messages
            .iter()
            .map(|message| text(&message["content"]))
            .collect();
        let Some(last) = texts.last() else {
            return Err("messages: is empty; add one".to_owned());
        };
        let mut tokens: Vec<String> = match params.stream_chunks {
            Some(count) => (0..count).map(|n| format!("token{n} ")).collect(),
            None => last
                .split_inclusive(char::is_whitespace)
                .map(str::to_owned)
                .collect(),
        };
        let limit = ["max_completion_tokens", "max_tokens"]
            .iter()
            .find_map(|key| body.get(*key)?.as_u64());
        tokens.truncate(
            limit
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(usize::MAX),
        );
        let flag = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or_default();
        Ok(Self {
            id: format!("chatcmpl-{number}"),
            model: body
                .get("model")
                .and_then(Value::as_str)
                .unwrap_or(MODEL)
                .to_owned(),
            tokens,
            prompt_tokens: texts
                .iter()
                .map(|text| text.split_whitespace().count())
                .sum(),
            stream: flag(body.get("stream")),
            include_usage: flag(
                body.get("stream_options")
                    .and_then(|options| options.get("include_usage")),
            ),
        })
    }

    pub(crate) fn whole(&self, created: u64) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": self.tokens.concat()},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": self.usage(),
        })
    }

    /// Server-sent events: one a token, between one that opens the message and those that close it.
    pub(crate) fn events(self, created: u64) -> impl Iterator<Item = Bytes> + Send + 'static {
        let chunk = |choices: Value, usage: Value| {
            json!({
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": self.model,
                "choices": choices,
                "usage": usage,
            })
        };
        let delta = |delta: Value, finish: Value| {
            chunk(
                json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]),
                Value::Null,
            )
        };
        let mut events = vec![delta(
            json!({"role": "assistant", "content": ""}),
            Value::Null,
        )];
        events.extend(
            self.tokens
                .iter()
                .map(|token| delta(json!({"content": token}), Value::Null)),
        );
        events.push(delta(json!({}), json!("stop")));
        if self.include_usage {
            events.push(chunk(json!([]), self.usage()));
        }
        let texts: Vec<String> = events.iter().map(Value::to_string).collect();
        let done = std::iter::once("[DONE]".to_owned());
        texts
            .into_iter()
            .chain(done)
            .map(|text| Bytes::from(format!("data: {text}\n\n")))
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens.len(),
            "total_tokens": self.prompt_tokens + self.tokens.len(),
        })
    }
}

/// A content is a text, or a list of parts of which some are text.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part["text"].as_str())
                .collect();
            texts.join(" ")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value, params: &Params) -> Chat {
        Chat::parse(body.as_object().unwrap(), params, 7)
            .ok()
            .unwrap()
    }

    #[test]
    fn the_answer_repeats_the_last_message() {
        let body = json!({"model": "m", "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello big world"}]},
        ], "max_tokens": 2});
        let answer = chat(body, &Params::default()).whole(5);
        assert_eq!(answer["choices"][0]["message"]["content"], "hello big ");
        assert_eq!(
            answer["usage"],
            json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
        );
        assert_eq!(
            (&answer["id"], &answer["model"]),
            (&json!("chatcmpl-7"), &json!("m"))
        );
    }

    #[test]
    fn a_stream_opens_brings_its_tokens_and_ends_with_done() {
        let body = json!({"messages": [{"content": "x"}], "stream": true,
            "stream_options": {"include_usage": true}});
        let params = Params {
            stream_chunks: Some(2),
            ..Params::default()
        };
        let events: Vec<Bytes> = chat(body, &params).events(5).collect();
        let texts: Vec<&str> = events
            .iter()
            .map(|event| std::str::from_utf8(event).unwrap())
            .collect();
        assert!(
            texts
                .iter()
                .all(|text| text.starts_with("data: ") && text.ends_with("\n\n"))
        );
        assert_eq!((texts.len(), texts[5]), (6, "data: [DONE]\n\n"));
        let second: Value = serde_json::from_str(texts[1].trim_start_matches("data: ")).unwrap();
        assert_eq!(second["choices"][0]["delta"]["content"], "token0 ");
    }

    #[test]
    fn messages_are_required() {
        for body in [
            json!({}),
            json!({"messages": []}),
            json!({"messages": "hi"}),
        ] {
            let err = Chat::parse(body.as_object().unwrap(), &Params::default(), 1)
                .err()
                .unwrap();
            assert!(err.starts_with("messages: "), "{err}");
        }
    }
}
