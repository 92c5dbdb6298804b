//! In: the names of the kubelet's directories of logs; out: a list of pods whenever it has changed. Reads no file and
//! contacts nobody; so it knows no containers' ids, labels or annotations.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::queue::{Closed, Queue};
use super::stats::Dropped;
use crate::identity::path::printable;
use crate::identity::pods::{Phase, Pod, PodEvent, Wanted};

/// Most directories looked at; a node has a few hundred pods.
const MOST: usize = 20_000;

/// Looks at `path` every `poll` until the handle is dropped.
pub(super) async fn run(path: &Path, poll: Duration, queue: Queue, mut wanted: watch::Receiver<Wanted>) {
    let mut last: Option<Vec<Pod>> = None;
    let mut complaint: Option<io::ErrorKind> = None;
    loop {
        let began = Instant::now();
        let directory = PathBuf::from(path);
        // A file system that hangs must hang no more than one helper thread, and never the agent's end.
        let look = tokio::task::spawn_blocking(move || look(&directory));
        let found = tokio::select! {
            found = look => found.unwrap_or_else(|error| Err(io::Error::other(error))),
            () = stopped(&mut wanted) => return,
        };
        match found {
            Ok((pods, unusable)) => {
                complaint = None;
                queue.counters.heard();
                if last.as_ref() != Some(&pods) {
                    for _ in 0..unusable {
                        queue.counters.drop_event(Dropped::Malformed);
                    }
                    let told = tokio::select! {
                        told = tell(&pods, &queue) => told,
                        () = stopped(&mut wanted) => return,
                    };
                    if told == Err(Closed) {
                        return;
                    }
                    queue.counters.list_complete(began.elapsed());
                    last = Some(pods);
                }
            }
            // What was known stays known: a directory out of reach is no proof that pods are gone.
            Err(error) => {
                if complaint != Some(error.kind()) {
                    let path = printable(path.as_os_str().as_encoded_bytes());
                    tracing::warn!(path, %error, "cannot look for pods' directories: mount them, or set `kubernetes.pods: off`");
                    complaint = Some(error.kind());
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(poll) => {}
            () = stopped(&mut wanted) => return,
        }
    }
}

/// Until the handle is gone. What labels are wanted changes nothing here.
async fn stopped(wanted: &mut watch::Receiver<Wanted>) {
    while wanted.changed().await.is_ok() {}
}

async fn tell(pods: &[Pod], queue: &Queue) -> Result<(), Closed> {
    queue.put(PodEvent::ListBegins).await?;
    for pod in pods {
        queue.put(PodEvent::Listed(pod.clone())).await?;
    }
    queue.put(PodEvent::ListComplete).await
}

/// The pods of a directory in the order of their names, and how many names are none of a pod.
fn look(path: &Path) -> io::Result<(Vec<Pod>, usize)> {
    let mut pods = Vec::new();
    let mut unusable = 0;
    for entry in std::fs::read_dir(path)?.take(MOST) {
        let entry = entry?;
        // Links are nobody's directory: the kubelet makes none here.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match entry.file_name().to_str().and_then(pod) {
            Some(pod) => pods.push(pod),
            None => unusable += 1,
        }
    }
    pods.sort_unstable_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    Ok((pods, unusable))
}

/// `<namespace>_<name>_<uid>`, where no part can hold a `_`.
fn pod(name: &str) -> Option<Pod> {
    let mut parts = name.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let sound = |part: &str, most: usize| {
        (1..=most).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
    };
    if parts.next().is_some() || !sound(namespace, 63) || !sound(name, 253) || !sound(uid, 64) {
        return None;
    }
    let uid: Arc<str> = uid.into();
    // The kubelet names the directory of a static pod after the hash of its configuration, as it does the cgroup.
    let hash = uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit());
    Some(Pod {
        config_hash: hash.then(|| Arc::clone(&uid)),
        uid,
        namespace: namespace.into(),
        name: name.into(),
        resource_version: "".into(),
        labels: Box::default(),
        annotations: Box::default(),
        phase: Phase::Unknown,
        containers: Box::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_directories() {
        let ordinary = pod("shop_cart-7d9f_0d1c5f5e-1111-4222-8333-444455556666").expect("a pod");
        assert_eq!((&*ordinary.namespace, &*ordinary.name), ("shop", "cart-7d9f"));
        assert_eq!(&*ordinary.uid, "0d1c5f5e-1111-4222-8333-444455556666");
        assert_eq!(ordinary.config_hash, None);
        let hash = "0123456789abcdef0123456789abcdef";
        let fixed = pod(&format!("kube-system_etcd-node_{hash}")).expect("a static pod");
        assert_eq!(fixed.config_hash.as_deref(), Some(hash));
        for hostile in [
            "",
            "a",
            "a_b",
            "a_b_c_d",
            "_b_c",
            "a__c",
            "a_b_",
            "A_b_c",
            "a_b\n_c",
            "a_b\"_c",
            "a_é_c",
            ".._.._.. ",
        ] {
            assert_eq!(pod(hostile), None, "{hostile:?}");
        }
        assert_eq!(pod(&format!("a_{}_c", "b".repeat(254))), None);
    }

    #[test]
    fn a_look_at_a_directory() {
        let dir = std::env::temp_dir().join(format!("kernmeter-directories-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("b_two_2")).expect("make");
        std::fs::create_dir_all(dir.join("a_one_1/container")).expect("make");
        std::fs::create_dir_all(dir.join("not a pod")).expect("make");
        std::fs::write(dir.join("c_three_3"), "").expect("write");
        std::os::unix::fs::symlink(dir.join("b_two_2"), dir.join("d_four_4")).expect("link");
        let (pods, unusable) = look(&dir).expect("read");
        let names: Vec<&str> = pods.iter().map(|pod| &*pod.name).collect();
        assert_eq!((names, unusable), (vec!["one", "two"], 1));
        std::fs::remove_dir_all(&dir).expect("clean up");
        assert!(look(&dir).is_err());
    }
}
