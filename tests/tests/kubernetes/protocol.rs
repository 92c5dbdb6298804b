//! What is asked of an API server that is well, and how often.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use kernmeter::identity::pods::Wanted;
use kernmeter_tests::Outcome;
use kernmeter_tests::apiserver::{ApiServer, PodSpec, Resource, Verb};
use kernmeter_tests::trial::with_retries;

use super::subject::{NODE, Subject, churn, id, pod, populate, settings};

kernmeter_tests::trials!(
    one_list_one_watch_of_one_node,
    a_watch_resumes_where_it_was,
    bookmarks_keep_a_quiet_watch_young,
    static_pods_and_restarts,
    namespaces_only_if_wanted,
    wanted_keys_change,
    a_new_token_is_read,
    tls,
    agents_do_not_ask_together,
);

/// From the cache of the server, with the selector of the node; pods elsewhere are never seen.
fn one_list_one_watch_of_one_node() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 30);
    let mut subject = Subject::patient(&server)?;
    subject.settle(&server)?;
    churn(&server, 0);
    subject.settle(&server)?;
    let asked = server.asked();
    ensure!(server.count(Verb::List) == 1, "{server}");
    for request in &asked {
        ensure!(request.resource == Resource::Pods, "{request:?}");
        ensure!(request.query.get("fieldSelector") == Some(&format!("spec.nodeName={NODE}")), "{request:?}");
    }
    ensure!(asked[0].query.get("resourceVersion").map(String::as_str) == Some("0"), "{:?}", asked[0]);
    ensure!(asked[1].query.get("allowWatchBookmarks").map(String::as_str) == Some("true"), "{:?}", asked[1]);
    ensure!(subject.cache.by_name("team-0", "far-0").is_none());
    // The same name anew is another pod; the old one is still found by what it was.
    let anew = subject.cache.by_name("team-0", "pod-6").expect("a pod");
    ensure!(&*anew.uid == "uid-6-of-0", "{anew:?}");
    ensure!(subject.cache.by_uid("uid-6").is_some() && subject.cache.by_container(&id(12)).is_some());
    let stats = subject.stats();
    ensure!(
        stats.lists == 1 && stats.last_event_age.is_some_and(|age| age < Duration::from_secs(5)),
        "{stats:?}"
    );
    println!("list {:?}, longest handler run {:?}", stats.syncs, stats.longest_handler_run);
    Ok(())
}

/// A broken connection costs a request, not a list, and misses nothing.
fn a_watch_resumes_where_it_was() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 20);
    let mut subject = Subject::patient(&server)?;
    subject.settle(&server)?;
    for round in 0..8 {
        server.break_streams();
        churn(&server, round);
        subject.settle(&server)?;
    }
    ensure!(server.count(Verb::List) == 1, "{server}");
    ensure!(subject.restarts("disconnected") >= 8, "{:?}", subject.stats());
    let versions: BTreeSet<_> = server
        .asked()
        .iter()
        .filter(|asked| asked.verb == Verb::Watch)
        .filter_map(|asked| asked.query.get("resourceVersion").cloned())
        .collect();
    ensure!(versions.len() >= 8, "resumed at {versions:?} only");
    Ok(())
}

/// Nothing happens on the node, much elsewhere, and the history is forgotten: bookmarks make a list needless.
fn bookmarks_keep_a_quiet_watch_young() -> Outcome {
    let lists = |bookmarks: Option<Duration>| -> anyhow::Result<usize> {
        let server = ApiServer::start()?;
        server.bookmarks(bookmarks);
        populate(&server, 5);
        let mut settings = settings(&server)?;
        settings.watch_timeout = Duration::from_mins(1);
        let mut subject = Subject::start(&settings, Wanted::default())?;
        subject.settle(&server)?;
        server.wait_count(Verb::Watch, 1)?;
        for round in 0..5 {
            for far in 0..10 {
                server.put(&PodSpec::new(
                    "node-b",
                    "team-0",
                    &format!("far-{far}"),
                    &format!("far-{round}-{far}"),
                ));
            }
            // Time for a bookmark to tell of a version that concerns no pod of the node.
            subject.pump(Duration::from_millis(400))?;
            server.forget();
            let watches = server.count(Verb::Watch);
            server.break_streams();
            server.wait_count(Verb::Watch, watches + 1)?;
            subject.pump(Duration::from_millis(100))?;
        }
        subject.settle(&server)?;
        Ok(server.count(Verb::List))
    };
    // A busy machine may keep a bookmark, or a list, for longer than was waited.
    with_retries(|| {
        let (with, without) = (lists(Some(Duration::from_millis(30)))?, lists(None)?);
        println!("{with} lists with bookmarks, {without} without");
        // The last one may not have come to it yet.
        ensure!(without >= 5, "{without} lists: the history was not forgotten");
        ensure!(with <= 2, "{with} lists: bookmarks changed nothing");
        Ok(())
    })
}

/// A static pod is found by its hash; a container's earlier run by its own id.
fn static_pods_and_restarts() -> Outcome {
    let hash = "0123456789abcdef0123456789abcdef";
    let server = ApiServer::start()?;
    server.put(&pod(1).mirror_of(hash));
    let mut claims = pod(2);
    claims.annotations.insert("kubernetes.io/config.hash".into(), "f".repeat(32));
    server.put(&claims);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    ensure!(subject.cache.by_uid(hash).is_some_and(|pod| &*pod.uid == "uid-1"));
    ensure!(subject.cache.by_uid(&"f".repeat(32)).is_none(), "an annotation alone made a static pod");
    let mut again = pod(1).mirror_of(hash);
    again.containers = vec![("main".into(), id(77))];
    server.put(&again);
    subject.settle(&server)?;
    for container in [2, 3, 77] {
        let found = subject.cache.by_container(&id(container)).map(|(pod, _)| pod.uid.to_string());
        ensure!(found.as_deref() == Some("uid-1"), "container {container}: {found:?}");
    }
    server.delete("uid-1");
    subject.settle(&server)?;
    ensure!(subject.cache.by_container(&id(77)).is_some(), "its last counts may still come");
    Ok(())
}

/// Metadata of namespaces is watched only if rules look at it, and nothing but metadata is asked for.
fn namespaces_only_if_wanted() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 3);
    server.put_namespace("team-0", &[("owner", "acme"), ("noise", "x")]);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    ensure!(server.asked().iter().all(|asked| asked.resource == Resource::Pods));

    let wanted = Wanted { namespace_labels: vec!["owner".into()], ..Wanted::default() };
    subject.pods.want(wanted);
    let owner = |subject: &Subject, name: &str| {
        let namespace = subject.cache.namespace(name)?;
        Some(
            namespace
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(","),
        )
    };
    let wait = |subject: &mut Subject, name: &str, expected: Option<&str>| -> Outcome {
        let until = Instant::now() + Duration::from_secs(10);
        while owner(subject, name).as_deref() != expected {
            ensure!(Instant::now() < until, "{name}: {:?} instead of {expected:?}", owner(subject, name));
            subject.pump(Duration::from_millis(10))?;
        }
        Ok(())
    };
    wait(&mut subject, "team-0", Some("owner=acme"))?;
    server.put_namespace("team-0", &[("owner", "umbrella")]);
    wait(&mut subject, "team-0", Some("owner=umbrella"))?;
    server.put_namespace("empty", &[("owner", "nobody")]);
    wait(&mut subject, "empty", Some("owner=nobody"))?;
    server.delete_namespace("empty");
    wait(&mut subject, "empty", None)?;
    for asked in server.asked().iter().filter(|asked| asked.resource == Resource::Namespaces) {
        ensure!(asked.accept.contains("as=PartialObjectMetadata"), "{asked:?}");
    }
    ensure!(subject.restarts("wanted_changed") == 1);
    Ok(())
}

/// Other labels are wanted: everything is listed again with them; the same wish again costs nothing.
fn wanted_keys_change() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 10);
    let mut subject = Subject::patient(&server)?;
    subject.settle(&server)?;
    ensure!(subject.cache.by_uid("uid-3").expect("a pod").labels.is_empty());
    let wanted = Wanted { pod_labels: vec!["app".into()], ..Wanted::default() };
    subject.pods.want(wanted.clone());
    server.wait_count(Verb::List, 2)?;
    subject.pump(Duration::from_millis(300))?;
    subject.settle(&server)?;
    let labels = &subject.cache.by_uid("uid-3").expect("a pod").labels;
    ensure!(labels.iter().any(|(key, value)| (&**key, &**value) == ("app", "app-3")), "{labels:?}");
    subject.pods.want(wanted);
    subject.pump(Duration::from_millis(100))?;
    ensure!(server.count(Verb::List) == 2, "{server}");
    Ok(())
}

/// The token was replaced on disk: the next refusal has it read again.
fn a_new_token_is_read() -> Outcome {
    let server = ApiServer::start()?;
    populate(&server, 5);
    server.require_token("secret-of-the-tests");
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    server.require_token("another-secret");
    server.break_streams();
    subject.pump(Duration::from_millis(300))?;
    ensure!(subject.restarts("unauthorized") > 0, "{:?}", subject.stats());
    std::fs::write(server.token_file(), "another-secret")?;
    churn(&server, 0);
    let took = subject.settle(&server)?;
    println!("the new token was used after {took:?}");
    Ok(())
}

/// TLS with the authority of the kubeconfig; with another one, no request is ever made.
fn tls() -> Outcome {
    let server = ApiServer::start_tls()?;
    populate(&server, 10);
    let mut subject = Subject::of(&server)?;
    subject.settle(&server)?;
    churn(&server, 0);
    subject.settle(&server)?;
    drop(subject);

    let stranger = ApiServer::start_tls()?;
    let path = stranger.kubeconfig()?;
    let config = settings(&stranger)?;
    let authority = server.kubeconfig()?.with_file_name("ca.pem");
    std::fs::copy(authority, path.with_file_name("ca.pem"))?;
    let mut subject = Subject::start(&config, Wanted::default())?;
    subject.pump(Duration::from_millis(500))?;
    let refused = subject.restarts("disconnected");
    ensure!(refused > 0 && stranger.asked().is_empty(), "{stranger}; {:?}", subject.stats());
    Ok(())
}

/// The agents of a cluster start at the same moment, and later lose their connections at the same moment: requests spread
/// out, and a lost connection costs no list.
fn agents_do_not_ask_together() -> Outcome {
    const AGENTS: usize = 24;
    let server = ApiServer::start()?;
    populate(&server, 5);
    let mut settings = settings(&server)?;
    settings.start_jitter = Duration::from_secs(1);
    settings.watch_timeout = Duration::from_mins(1);
    settings.backoff_least = Duration::from_secs(1);
    settings.backoff_most = Duration::from_secs(4);
    let began = Instant::now();
    let agents: Vec<Subject> =
        (0..AGENTS).map(|_| Subject::start(&settings, Wanted::default())).collect::<Result<_, _>>()?;
    server.wait_count(Verb::Watch, AGENTS)?;
    let lists: Vec<Duration> = server
        .asked()
        .iter()
        .filter(|asked| asked.verb == Verb::List)
        .map(|asked| asked.at.duration_since(began))
        .collect();
    // A busy machine only spreads them further: that they are spread is what can be held to.
    let span = |times: &[Duration]| match (times.iter().min(), times.iter().max()) {
        (Some(first), Some(last)) => last.saturating_sub(*first),
        _ => Duration::ZERO,
    };
    println!("{} lists within {:?}", lists.len(), span(&lists));
    ensure!(lists.len() == AGENTS, "{} lists", lists.len());
    ensure!(span(&lists) >= Duration::from_millis(300), "all lists within {:?}", span(&lists));

    let broken = Instant::now();
    server.break_streams();
    server.wait_count(Verb::Watch, 2 * AGENTS)?;
    let resumed: Vec<Duration> = server
        .asked()
        .iter()
        .filter(|asked| asked.verb == Verb::Watch && asked.at > broken)
        .map(|asked| asked.at.duration_since(broken))
        .collect();
    println!("{} watches resumed within {:?}", resumed.len(), span(&resumed));
    ensure!(span(&resumed) >= Duration::from_millis(150), "all resumed within {:?}", span(&resumed));
    ensure!(server.count(Verb::List) == AGENTS, "{} lists", server.count(Verb::List));
    drop(agents);
    Ok(())
}
