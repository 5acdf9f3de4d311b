use super::*;
use proptest::prelude::*;

fn parsed(text: &str, fill: Fill) -> Result<Trace, String> {
    parse("t.csv", text.as_bytes(), fill).map_err(|error| error.to_string())
}

fn values(text: &str) -> Vec<f64> {
    let trace = parsed(text, Fill::No).expect("a trace");
    trace.by_second().map(|segment| segment.value).collect()
}

fn refused(text: &str) -> String {
    parsed(text, Fill::No).expect_err("a mistake")
}

#[test]
fn every_second_has_the_segment_that_holds_in_it() {
    let mut trace = Trace::empty("t", Kind::Rate);
    for value in [1.0, 1.0, 2.0, 2.0, 2.0, 1.0] {
        trace.push_second(value, None);
    }
    assert_eq!(trace.segments.len(), 3);
    let values: Vec<f64> = trace.by_second().map(|segment| segment.value).collect();
    assert_eq!(values, [1.0, 1.0, 2.0, 2.0, 2.0, 1.0]);
}

#[test]
fn a_rate_holds_until_the_next_row_and_the_last_one_as_long_as_usual() {
    let text = "t_seconds,rps\n0,1\n2,5\n4,9\n";
    assert_eq!(values(text), [1.0, 1.0, 5.0, 5.0, 9.0, 9.0]);
    let trace = parsed(text, Fill::No).expect("a trace");
    assert_eq!((trace.kind, trace.length_s), (Kind::Rate, 6));
    let concurrency = parsed("\u{feff}T_Seconds, Concurrency\r\n100,3\r\n", Fill::No);
    let concurrency = concurrency.expect("a trace");
    assert_eq!(
        (concurrency.kind, concurrency.length_s),
        (Kind::Concurrency, 1)
    );
}

#[test]
fn rows_within_a_second_become_their_mean_over_it() {
    assert_eq!(
        values("t_seconds,rps\n0,4\n0.5,8\n1,2\n1.25,6\n"),
        [6.0, 5.0, 6.0],
        "the last row's rest of a second stands for it"
    );
}

#[test]
fn a_log_of_requests_is_counted_by_second_from_its_first_line_on() {
    let combined = "1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.0\" 200 2326 \"-\" \"x\"\n\
                    1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.0\" 200 2326\n\
                    1.2.3.4 - - [10/Oct/2000:13:55:38 -0700] \"GET / HTTP/1.0\" 200 2326\n";
    assert_eq!(values(combined), [2.0, 0.0, 1.0]);
    assert_eq!(
        parsed(combined, Fill::No).expect("a trace").kind,
        Kind::Counts
    );
    let json = "{\"ts\": 1700000000.9, \"path\": \"/\"}\n{\"time\": \"2023-11-14T22:13:21.1Z\"}\n\
                {\"@timestamp\": 1700000003200}\n";
    assert_eq!(values(json), [2.0, 0.0, 1.0]);
}

#[test]
fn tokens_give_the_service_time_of_their_second() {
    let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                2023-11-16 18:17:03.9799600,1000,10\n\
                2023-11-16 18:17:04.0319600,3000,20\n\
                2023-11-16 18:17:06.5,0,5\n";
    let trace = parsed(text, Fill::No).expect("a trace");
    let seconds: Vec<(f64, Option<f64>)> = trace
        .by_second()
        .map(|segment| (segment.value, segment.service_s))
        .collect();
    // 0.1 + 0.2 and 0.3 + 0.4 seconds, then 0.1.
    let [(two, Some(mean)), (none, None), (one, Some(last))] = seconds[..] else {
        panic!("{seconds:?}");
    };
    assert_eq!((two, none, one), (2.0, 0.0, 1.0));
    assert!((mean - 0.5).abs() < 1e-9 && (last - 0.1).abs() < 1e-9);
}

#[test]
fn a_count_of_each_minute_becomes_a_rate_and_a_minute_without_a_row_had_no_requests() {
    let text = "period,count\n1998-04-30 21:30:00,120\n1998-04-30 21:31:00,60\n\
                1998-04-30 21:33:00,6\n";
    let values = values(text);
    assert_eq!(values.len(), 240);
    assert_eq!((values[0], values[59], values[60]), (2.0, 2.0, 1.0));
    assert_eq!((values[120], values[179], values[180]), (0.0, 0.0, 0.1));
}

#[test]
fn a_mistake_names_its_line_what_is_wrong_and_what_was_expected() {
    for (text, expected) in [
        (
            "",
            "t.csv:1: the file is empty: expected a header `t_seconds,rps`",
        ),
        ("\n\n", "t.csv:2: the file is empty"),
        (
            "0,10\n1,20\n",
            "t.csv:1: there is no header: expected a header",
        ),
        (
            "a,b\n",
            "t.csv:1: \"a,b\" is no known kind of trace: expected",
        ),
        (
            "t_seconds,rps\n",
            "t.csv:1: nothing follows the header: expected at least one line",
        ),
        (
            "t_seconds,rps\n0,1\n1,-2\n",
            "t.csv:3: the value is -2: expected a number from 0 on",
        ),
        (
            "t_seconds,rps\n0,1\n\n1,many\n",
            "t.csv:4: the value is \"many\": expected a number from 0 on",
        ),
        (
            "t_seconds,rps\n0,NaN\n",
            "t.csv:2: the value is NaN: expected",
        ),
        (
            "t_seconds,rps\n0,inf\n",
            "t.csv:2: the value is inf: expected",
        ),
        (
            "t_seconds,rps\n0,1e12\n",
            "t.csv:2: the value is 1000000000000: expected at most",
        ),
        (
            "t_seconds,rps\n-1,1\n",
            "t.csv:2: t_seconds is -1: expected a number from 0",
        ),
        (
            "t_seconds,rps\nsoon,1\n",
            "t.csv:2: t_seconds is \"soon\": expected a number",
        ),
        (
            "t_seconds,rps\n0,1,2\n",
            "t.csv:2: it has 3 fields: expected 2",
        ),
        (
            "t_seconds,rps\n0,1\n5,1\n3,1\n",
            "t.csv:4: its time lies 2 s before that of the line before: expected lines sorted",
        ),
        (
            "t_seconds,rps\n0,1\n0,1\n",
            "t.csv:3: its time is that of the line before: expected each time once",
        ),
        (
            "t_seconds,rps\n0,1\n99999999,1\n",
            "t.csv:3: it lies more than 400 days after the first: expected a shorter trace",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n",
            "t.csv:2: \"now\" is no time: expected RFC 3339",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,-1\n",
            "t.csv:2: GeneratedTokens is -1: expected a number from 0 on",
        ),
        (
            "{\"a\": 1}\n",
            "t.csv:1: it does not say when: expected one of the keys timestamp,",
        ),
        (
            "{\"ts\": true}\n",
            "t.csv:1: its ts is true: expected RFC 3339",
        ),
        ("{\"ts\": 1}\n{\"ts\"\n", "t.csv:2: no JSON object (EOF"),
    ] {
        let refused = refused(text);
        assert!(refused.starts_with(expected), "{refused}");
    }
}

#[test]
fn a_gap_is_told_with_its_line_and_filled_only_where_asked() {
    let rows = "0,1\n1,1\n2,7\n100,1\n101,1\n102,1\n103,1\n";
    let text = format!("t_seconds,rps\n{rows}");
    assert_eq!(
        refused(&text),
        "t.csv:5: a gap of 98 s before it, where rows usually lie 1 s apart (1 such gaps in all): \
         expected rows without gaps, or --fill, by which the value before it holds through it"
    );
    let filled = parsed(&text, Fill::Yes).expect("filled");
    let values: Vec<f64> = filled.by_second().map(|segment| segment.value).collect();
    assert_eq!((values.len(), values[99], values[100]), (104, 7.0, 1.0));
    let counts = "period,count\n2024-01-01 00:00:00,60\n2024-01-01 00:01:00,60\n\
                  2024-01-01 00:20:00,60\n2024-01-01 00:21:00,60\n";
    assert!(refused(counts).starts_with("t.csv:4: a gap of 1140 s before it"));
    let filled = parsed(counts, Fill::Yes).expect("filled");
    assert_eq!(
        filled.by_second().nth(600).map(|segment| segment.value),
        Some(0.0)
    );
}

#[test]
fn rows_that_lie_far_apart_by_habit_have_no_gap() {
    assert_eq!(
        values("t_seconds,concurrency\n0,10\n120,1000\n420,10\n800,10\n").len(),
        860
    );
}

#[test]
fn a_line_without_an_end_is_refused_before_it_is_read_whole() {
    let endless = std::io::BufReader::new(std::io::repeat(b'x'));
    let refused = parse("t.csv", endless, Fill::No)
        .expect_err("too long")
        .to_string();
    assert!(
        refused.starts_with("t.csv:1: the line has more than 1048576 bytes"),
        "{refused}"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        header in prop::sample::select(vec![
            "", "t_seconds,rps\n", "t_seconds,concurrency\n", "period,count\n",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n", "{\"ts\": 1}\n",
            "x [10/Oct/2000:13:55:36 -0700]\n",
        ]),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let text = [header.as_bytes(), &bytes].concat();
        let _ = parse("t.csv", text.as_slice(), Fill::Yes);
    }

    #[test]
    fn what_is_read_keeps_every_request(
        rows in proptest::collection::vec((0.01..50.0f64, 0.0..1e4f64), 1..40),
    ) {
        let mut text = "t_seconds,rps\n".to_owned();
        let (mut at, mut sum) = (0.0, 0.0);
        for (i, (distance, value)) in rows.iter().enumerate() {
            text += &format!("{at},{value}\n");
            if i + 1 < rows.len() {
                sum += value * distance;
            }
            at += distance;
        }
        let trace = parsed(&text, Fill::Yes).expect("a trace");
        prop_assert!(trace.by_second().all(|it| it.value.is_finite() && it.value >= 0.0));
        let read: f64 = trace.by_second().map(|it| it.value).sum();
        let last = rows.last().expect("one").1;
        // The last row holds for 1 to 60 s, and what is left of a second becomes one.
        prop_assert!(read >= sum - 0.01 && read <= sum + last * 61.0 + 1e4, "{read} {sum}");
    }
}
