//! Each fault of an API server, while pods come and go: requests stay few, and afterwards the cache equals the truth.

use std::time::Duration;

use anyhow::{Result, ensure};
use kernmeter::identity::pods::Wanted;
use kernmeter_tests::apiserver::{ApiServer, Fault, Resource, Spoil, Verb, dead_port};
use kernmeter_tests::{Outcome, trial};
use libtest_mimic::{Failed, Trial};

use super::subject::{NODE, Subject, churn, id, pod, populate, settings};

/// How long a fault lasts at least: on a busy machine until it is met.
const SPAN: Duration = Duration::from_millis(1200);
/// Most requests within such a time. Waits are 10 ms at least after the first failure and 100 ms after some: 4 quick ones, and
/// one for each 100 ms. A busy loop makes thousands.
const REQUESTS: usize = 24;
/// Most such times that a fault is waited for.
const MOST_SPANS: usize = 20;

/// Name, the request that fails, how, and what the agent calls it.
const FAULTS: &[(&str, Verb, Fault, &str)] = &[
    ("watch_gone", Verb::Watch, Fault::Status(410, None), "gone"),
    ("watch_gone_in_the_stream", Verb::Watch, Fault::ErrorEvent(410), "gone"),
    ("watch_error_in_the_stream", Verb::Watch, Fault::ErrorEvent(500), "server_error"),
    ("watch_unauthorized", Verb::Watch, Fault::Status(401, None), "unauthorized"),
    ("watch_forbidden", Verb::Watch, Fault::Status(403, None), "forbidden"),
    ("watch_throttled", Verb::Watch, Fault::Status(429, Some(1)), "throttled"),
    ("watch_server_error", Verb::Watch, Fault::Status(503, None), "server_error"),
    ("watch_refused", Verb::Watch, Fault::Status(400, None), "refused"),
    ("watch_hung", Verb::Watch, Fault::Silent, "silent"),
    ("watch_hung_after_its_head", Verb::Watch, Fault::HeadOnly, "silent"),
    ("watch_garbage", Verb::Watch, Fault::Garbage, "malformed"),
    ("watch_cut_in_an_event", Verb::Watch, Fault::Truncated, "disconnected"),
    ("watch_ends_at_once", Verb::Watch, Fault::EndAtOnce, "ended"),
    ("watch_endless_line", Verb::Watch, Fault::Endless, "too_large"),
    ("list_gone", Verb::List, Fault::Status(410, None), "gone"),
    ("list_unauthorized", Verb::List, Fault::Status(401, None), "unauthorized"),
    ("list_forbidden", Verb::List, Fault::Status(403, None), "forbidden"),
    ("list_throttled", Verb::List, Fault::Status(429, Some(1)), "throttled"),
    ("list_server_error", Verb::List, Fault::Status(500, None), "server_error"),
    ("list_hung", Verb::List, Fault::Silent, "silent"),
    ("list_hung_after_its_head", Verb::List, Fault::HeadOnly, "silent"),
    ("list_garbage", Verb::List, Fault::Garbage, "malformed"),
    ("list_truncated", Verb::List, Fault::Truncated, "disconnected"),
    ("list_empty_body", Verb::List, Fault::EndAtOnce, "malformed"),
    ("list_endless", Verb::List, Fault::Endless, "too_large"),
];

pub fn trials() -> Vec<Trial> {
    let table = FAULTS.iter().map(|&(name, verb, fault, reason)| {
        Trial::test(format!("faults::{name}"), move || {
            survives(verb, fault, reason).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    table.chain(others()).collect()
}

/// The cache is right; the fault strikes while pods come and go; it is healed; the cache is right again.
fn survives(verb: Verb, fault: Fault, reason: &str) -> Result<()> {
    let server = ApiServer::start()?;
    populate(&server, 20);
    // How long a machine takes for the megabytes of a line without an end is its own affair.
    let mut subject = if fault == Fault::Endless { Subject::patient(&server) } else { Subject::of(&server) }?;
    subject.settle(&server)?;
    let known = subject.cache.snapshot().len();

    server.fail_on(verb, fault);
    if verb == Verb::List {
        // What the watch stood at is forgotten, so that a list is needed.
        server.compact();
    }
    server.break_streams();
    let before = server.asked().len();
    churn(&server, 0);
    let mut spans = 1;
    subject.pump(SPAN)?;
    while subject.restarts(reason) == 0 && spans < MOST_SPANS {
        subject.pump(SPAN)?;
        spans += 1;
    }
    let during = server.asked().len() - before;
    let counted = subject.restarts(reason);
    ensure!(counted > 0, "not counted as {reason}: {:?}", subject.stats());
    ensure!(during <= REQUESTS * spans, "{during} requests in {spans} times {SPAN:?}");
    // A fault takes nothing away that was known.
    let present = subject.cache.snapshot().len();
    ensure!(present + 2 >= known, "{present} pods of {known} are left");

    server.heal();
    let took = subject.settle(&server)?;
    churn(&server, 1);
    let next = subject.settle(&server)?;
    let stopped = subject.stop();
    println!(
        "{verb:?} {fault:?}: {during} requests in {spans} times {SPAN:?}, {counted} times {reason}; right again after {took:?}, \
         then within {next:?}; stopped in {stopped:?}"
    );
    ensure!(stopped < Duration::from_secs(2), "took {stopped:?} to stop");
    Ok(())
}

fn others() -> Vec<Trial> {
    vec![
        trial("faults::stop_while_hung", stop_while_hung),
        trial("faults::nobody_listens", nobody_listens),
        trial("faults::the_first_list_fails_for_long", the_first_list_fails_for_long),
        trial("faults::a_slow_server_is_waited_for", a_slow_server_is_waited_for),
        trial("faults::duplicates", duplicates),
        trial("faults::another_order", another_order),
        trial("faults::cut_again_and_again", cut_again_and_again),
        trial("faults::a_poisoned_history", a_poisoned_history),
        trial("faults::broken_objects", broken_objects),
        trial("faults::labels_of_a_mebibyte", labels_of_a_mebibyte),
        trial("faults::a_queue_that_overflows", a_queue_that_overflows),
        trial("faults::a_page_that_is_gone", a_page_that_is_gone),
    ]
}

/// A source that waits for an answer can still be stopped at once.
fn stop_while_hung() -> Outcome {
    for fault in [Fault::Silent, Fault::HeadOnly] {
        let server = ApiServer::start()?;
        server.fail_on(Verb::List, fault);
        let mut settings = settings(&server)?;
        settings.request_timeout = Duration::from_mins(1);
        let subject = Subject::start(&settings, Wanted::default())?;
        server.wait_count(Verb::List, 1)?;
        let stopped = subject.stop();
        println!("{fault:?}: stopped in {stopped:?}");
        ensure!(stopped < Duration::from_secs(1), "took {stopped:?} to stop");
    }
    Ok(())
}

/// No server at all, from the start: no busy loop, and the pods come when it comes.
fn nobody_listens() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 3);
    let path = server.kubeconfig()?;
    let right = std::fs::read_to_string(&path)?;
    let address = right.split("//").nth(1).and_then(|rest| rest.split('\'').next()).unwrap_or_default();
    let settings = settings(&server)?;
    std::fs::write(&path, right.replace(address, &format!("127.0.0.1:{}", dead_port()?)))?;
    let mut subject = Subject::start(&settings, Wanted::default())?;
    subject.pump(SPAN)?;
    let tries = subject.restarts("disconnected");
    ensure!((1..=REQUESTS as u64).contains(&tries), "{tries} attempts in {SPAN:?}");
    ensure!(!subject.cache.is_complete() && server.asked().is_empty());
    println!("{tries} attempts in {SPAN:?}");
    Ok(())
}

/// Refused for long at the start: pods come when the server is well.
fn the_first_list_fails_for_long() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 10);
    server.fail(Verb::List, Resource::Pods, Fault::Status(503, None), 6);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    ensure!(subject.restarts("server_error") == 6, "{:?}", subject.stats());
    Ok(())
}

/// Slow is no fault: one list, one watch.
fn a_slow_server_is_waited_for() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 10);
    server.fail(Verb::List, Resource::Pods, Fault::Slow(1000, Duration::from_millis(10)), 1);
    let mut settings = settings(&server)?;
    settings.watch_timeout = Duration::from_secs(20);
    server.fail(Verb::Watch, Resource::Pods, Fault::Slow(50, Duration::from_millis(1)), 1);
    let mut subject = Subject::start(&settings, Wanted::default())?;
    subject.settle(&server)?;
    churn(&server, 0);
    subject.settle(&server)?;
    let stats = subject.stats();
    ensure!(server.count(Verb::List) == 1 && server.count(Verb::Watch) == 1, "{server}; {stats:?}");
    println!("list took {:?}", stats.syncs);
    Ok(())
}

fn spoilt(spoil: Spoil) -> Result<(ApiServer, Subject)> {
    let server = ApiServer::start()?;
    populate(&server, 20);
    server.spoil(spoil);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    for round in 0..5 {
        // Held back and sent at once, so that there is something to reorder.
        server.break_streams();
        churn(&server, round);
        subject.settle(&server)?;
    }
    Ok((server, subject))
}

/// Every event twice.
fn duplicates() -> Outcome {
    spoilt(Spoil { duplicates: true, ..Spoil::default() }).map(drop)
}

/// Events of different pods in another order than they happened.
fn another_order() -> Outcome {
    spoilt(Spoil { reordered: true, duplicates: true, ..Spoil::default() }).map(drop)
}

/// Each connection breaks in the middle of its second event: what was not whole comes again.
fn cut_again_and_again() -> Outcome {
    let (server, subject) = spoilt(Spoil { cut_after: Some(1), ..Spoil::default() })?;
    let cut = subject.restarts("disconnected");
    ensure!(cut >= 10, "cut {cut} times only");
    ensure!(
        server.count(Verb::List) == 1,
        "{} lists: a cut event is no reason for one",
        server.count(Verb::List)
    );
    println!("{cut} cuts, {server}");
    Ok(())
}

/// A line of garbage that comes again at every attempt to resume: a list gets past it.
fn a_poisoned_history() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 20);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    for poison in ["{\"type\":\"ADDED\",\"object\":{\"metadata\"", "\u{0}\u{1}", "[]", "{}", "{\"type\":3}"] {
        server.inject(poison);
        churn(&server, 0);
        subject.settle(&server)?;
    }
    let malformed = subject.restarts("malformed");
    ensure!((5..=20).contains(&malformed), "{malformed} restarts; {server}");
    println!("{malformed} restarts, {} lists for 5 lines", server.count(Verb::List));
    Ok(())
}

/// JSON, but no pod: counted and passed over, without a restart.
fn broken_objects() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 20);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    let lists = server.count(Verb::List);
    let broken = [
        r#"{"type":"ADDED","object":null}"#,
        r#"{"type":"ADDED","object":{"metadata":{"name":"x","namespace":"y"}}}"#,
        r#"{"type":"ADDED","object":{"metadata":{"name":"","namespace":"y","uid":"u"}}}"#,
        r#"{"type":"MODIFIED","object":{"metadata":{"name":"x","namespace":"y","uid":"u"},"status":7}}"#,
        r#"{"type":"DELETED","object":{}}"#,
        r#"{"type":"SURPRISE","object":{}}"#,
    ];
    for line in broken {
        server.inject(line);
    }
    churn(&server, 0);
    subject.settle(&server)?;
    let dropped = subject.dropped("malformed");
    // A watch that was renewed meanwhile may have brought one twice.
    ensure!(dropped >= broken.len() as u64, "{dropped} counted");
    ensure!(subject.restarts("malformed") == 0 && server.count(Verb::List) == lists, "{:?}", subject.stats());
    Ok(())
}

/// Labels of a mebibyte: a list that is too much at once is asked for by smaller and smaller pages.
fn labels_of_a_mebibyte() -> Outcome {
    let server = ApiServer::start()?;
    let huge = "x".repeat(1 << 20);
    let all: Vec<_> = (0..24).map(|number| pod(number).label("huge", &huge).label("app", &huge)).collect();
    server.put_all(&all);
    let mut settings = settings(&server)?;
    settings.request_timeout = Duration::from_secs(10);
    let wanted = Wanted { pod_labels: vec!["app".into(), "other".into()], ..Wanted::default() };
    let mut subject = Subject::start(&settings, wanted)?;
    subject.settle(&server)?;
    server.put(&pod(3).label("huge", &huge).label("other", "short"));
    subject.settle(&server)?;
    let three = subject.cache.by_uid("uid-3").expect("a pod");
    ensure!(
        three.labels.iter().any(|(key, value)| (&**key, &**value) == ("other", "short")),
        "{:?}",
        three.labels
    );
    let asked = server.asked();
    let limits: Vec<&str> =
        asked.iter().filter_map(|asked| asked.query.get("limit").map(String::as_str)).collect();
    ensure!(!limits.is_empty(), "never asked by pages");
    let memory = subject.cache.memory_bytes();
    ensure!(memory < 100_000, "{memory} bytes for 24 pods: what is not wanted was kept");
    println!("pages of {limits:?}; the cache has {memory} bytes");
    Ok(())
}

/// Nobody reads the queue while hundreds of events come: what is dropped is counted, and a list repairs it.
fn a_queue_that_overflows() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 20);
    let mut settings = settings(&server)?;
    settings.queue = 8;
    let mut subject = Subject::start(&settings, Wanted::default())?;
    subject.settle(&server)?;
    for number in 0..300 {
        server.put(&pod(number));
    }
    for number in 100..200 {
        server.delete(&format!("uid-{number}"));
    }
    std::thread::sleep(Duration::from_millis(300));
    subject.settle(&server)?;
    let (dropped, restarts) = (subject.dropped("queue_full"), subject.restarts("queue_full"));
    ensure!(dropped > 0 && restarts > 0, "{:?}", subject.stats());
    ensure!(server.count(Verb::List) as u64 <= restarts + 2, "{server}");
    println!("{dropped} dropped, {restarts} lists for it, {server}");
    Ok(())
}

/// The server forgets a list between its pages: the whole list begins anew, and nothing of the first is lost or doubled.
fn a_page_that_is_gone() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 50);
    let mut settings = settings(&server)?;
    settings.page = 7;
    // By pages from the start.
    server.fail(Verb::List, Resource::Pods, Fault::Status(504, None), 1);
    let mut subject = Subject::start(&settings, Wanted::default())?;
    server.wait_count(Verb::List, 4)?;
    server.compact();
    subject.settle(&server)?;
    ensure!(server.pods(NODE).len() == 50);
    ensure!(subject.cache.by_container(&id(99)).is_some());
    println!("{server}: {:?}", subject.stats().restarts.iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>());
    Ok(())
}
