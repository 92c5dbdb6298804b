//! In: a password and the bcrypt hash it should have; out: whether it has. Knows no request and no reader.
//!
//! One thread of its own computes, one password at a time, so that neither a drain nor an answer that needs no password
//! waits for it. Who asks for too much is told to come back; after a wrong password the thread rests three times as long
//! as it worked, so that guessing costs the host a quarter of one CPU at most. Verdicts are remembered under a keyed
//! digest: a scraper's password is computed once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ring::hmac;
use tokio::sync::oneshot;

/// Passwords that wait, from everywhere and from one address.
const QUEUE: usize = 16;
const QUEUE_OF_ONE: usize = 4;
/// Wrong passwords remembered; the oldest go first.
const WRONG: usize = 256;
/// Right ones, one a user; beyond, all are computed anew.
const RIGHT: usize = 4096;
/// Longest rest after a wrong password.
const REST: Duration = Duration::from_secs(2);

type Digest = [u8; 32];

/// What came of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Too many are waiting.
    Busy,
}

/// The thread's front.
#[derive(Debug)]
pub(super) struct Passwords {
    shared: Arc<Shared>,
    jobs: Mutex<Option<SyncSender<Job>>>,
}

#[derive(Debug)]
struct Shared {
    key: hmac::Key,
    verdicts: Mutex<Verdicts>,
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

#[derive(Debug, Default)]
struct Verdicts {
    /// The digest of the last right password of a user.
    right: HashMap<String, Digest>,
    wrong: HashSet<Digest>,
    wrong_order: VecDeque<Digest>,
}

#[derive(Debug)]
struct Job {
    user: String,
    password: Vec<u8>,
    hash: String,
    digest: Digest,
    reply: oneshot::Sender<bool>,
    _ticket: Ticket,
}

/// A place in the queue, given back when the password is computed or found not to be worth it.
#[derive(Debug)]
struct Ticket {
    shared: Arc<Shared>,
    peer: IpAddr,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = lock(&self.shared.waiting);
        if let Some(count) = waiting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.peer);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Passwords {
    /// No thread runs before the first password.
    ///
    /// # Panics
    /// If the kernel gives no random bytes, which it does once booted.
    pub(super) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new());
        let shared = Shared {
            key: key.expect("the kernel gives random bytes"),
            verdicts: Mutex::default(),
            waiting: Mutex::default(),
        };
        Self { shared: Arc::new(shared), jobs: Mutex::default() }
    }

    /// Whether `password` has this hash. `user` is who claims so and `peer` where from. If the caller goes away meanwhile,
    /// nothing is computed for him.
    pub(super) async fn check(&self, user: &str, password: &[u8], hash: &str, peer: IpAddr) -> Verdict {
        let digest = self.shared.digest(user, password, hash);
        if let Some(right) = self.shared.known(user, &digest) {
            return if right { Verdict::Right } else { Verdict::Wrong };
        }
        let Some(ticket) = Shared::enter(&self.shared, peer) else { return Verdict::Busy };
        let (reply, answer) = oneshot::channel();
        let job = Job {
            user: user.to_owned(),
            password: password.to_owned(),
            hash: hash.to_owned(),
            digest,
            reply,
            _ticket: ticket,
        };
        if !self.submit(job) {
            return Verdict::Busy;
        }
        match answer.await {
            Ok(true) => Verdict::Right,
            Ok(false) => Verdict::Wrong,
            Err(_) => Verdict::Busy,
        }
    }

    fn submit(&self, job: Job) -> bool {
        let mut jobs = lock(&self.jobs);
        if jobs.is_none() {
            let (sender, receiver) = sync_channel(QUEUE);
            let shared = Arc::clone(&self.shared);
            let thread =
                thread::Builder::new().name("passwords".into()).spawn(move || work(&shared, &receiver));
            if let Err(error) = thread {
                tracing::warn!(%error, "cannot start the thread that checks passwords");
                return false;
            }
            *jobs = Some(sender);
        }
        jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok())
    }
}

/// Until nobody can ask any more.
fn work(shared: &Shared, jobs: &Receiver<Job>) {
    for job in jobs {
        if job.reply.is_closed() {
            continue;
        }
        // The same may have been asked again while it was computed.
        let known = shared.known(&job.user, &job.digest);
        let begun = Instant::now();
        let right = known.unwrap_or_else(|| bcrypt::verify(&job.password, &job.hash).unwrap_or(false));
        let took = begun.elapsed();
        if known.is_none() {
            shared.remember(&job.user, job.digest, right);
        }
        let _ = job.reply.send(right);
        if known.is_none() && !right {
            thread::sleep((3 * took).min(REST));
        }
    }
}

impl Shared {
    /// Tells apart whatever differs in user, password or hash: each is preceded by its length.
    fn digest(&self, user: &str, password: &[u8], hash: &str) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user.as_bytes(), password, hash.as_bytes()] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut digest = Digest::default();
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    fn known(&self, user: &str, digest: &Digest) -> Option<bool> {
        let verdicts = lock(&self.verdicts);
        // Digests under a key that nobody knows: comparing them tells nothing of the password.
        if verdicts.right.get(user) == Some(digest) {
            return Some(true);
        }
        verdicts.wrong.contains(digest).then_some(false)
    }

    fn remember(&self, user: &str, digest: Digest, right: bool) {
        let mut verdicts = lock(&self.verdicts);
        if right {
            if verdicts.right.len() >= RIGHT {
                verdicts.right.clear();
            }
            verdicts.right.insert(user.to_owned(), digest);
        } else if verdicts.wrong.insert(digest) {
            verdicts.wrong_order.push_back(digest);
            if verdicts.wrong_order.len() > WRONG
                && let Some(oldest) = verdicts.wrong_order.pop_front()
            {
                verdicts.wrong.remove(&oldest);
            }
        }
    }

    fn enter(this: &Arc<Self>, peer: IpAddr) -> Option<Ticket> {
        let mut waiting = lock(&this.waiting);
        if waiting.values().sum::<usize>() >= QUEUE || waiting.get(&peer).is_some_and(|n| *n >= QUEUE_OF_ONE)
        {
            return None;
        }
        *waiting.entry(peer).or_default() += 1;
        Some(Ticket { shared: Arc::clone(this), peer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn right_wrong_and_remembered() {
        let passwords = Passwords::new();
        let good = hash("secret");
        run(async {
            assert_eq!(passwords.check("a", b"secret", &good, PEER).await, Verdict::Right);
            assert_eq!(passwords.check("a", b"Secret", &good, PEER).await, Verdict::Wrong);
            assert_eq!(passwords.check("a", b"", &good, PEER).await, Verdict::Wrong);
            assert_eq!(passwords.check("a", b"secret", &hash("other"), PEER).await, Verdict::Wrong);
            // Remembered, so that a thread that is gone is not missed.
            *lock(&passwords.jobs) = None;
            assert_eq!(passwords.check("a", b"secret", &good, PEER).await, Verdict::Right);
            assert_eq!(passwords.check("a", b"Secret", &good, PEER).await, Verdict::Wrong);
            assert!(lock(&passwords.jobs).is_none(), "computed again");
        });
        // A wrong one keeps its place while the thread rests.
        let until = Instant::now() + Duration::from_secs(20);
        while !lock(&passwords.shared.waiting).is_empty() {
            assert!(Instant::now() < until, "a place is lost");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn digests_are_unambiguous() {
        let shared = Passwords::new().shared;
        let parts =
            [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"), ("", "abc", "d"), ("abcd", "", "")];
        let digests: HashSet<_> = parts.iter().map(|(u, p, h)| shared.digest(u, p.as_bytes(), h)).collect();
        assert_eq!(digests.len(), parts.len());
        assert_ne!(Passwords::new().shared.digest("a", b"b", "c"), shared.digest("a", b"b", "c"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let shared = Passwords::new().shared;
        for n in 0..10_000u32 {
            let mut digest = Digest::default();
            digest[..4].copy_from_slice(&n.to_le_bytes());
            shared.remember(&n.to_string(), digest, n % 2 == 0);
        }
        let verdicts = lock(&shared.verdicts);
        assert_eq!((verdicts.wrong.len(), verdicts.wrong_order.len()), (WRONG, WRONG));
        assert!(verdicts.right.len() <= RIGHT);
    }

    #[test]
    fn one_address_cannot_fill_the_queue_and_all_cannot_overfill_it() {
        let shared = Passwords::new().shared;
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let held: Vec<Ticket> = (0..9).filter_map(|_| Shared::enter(&shared, address(1))).collect();
        assert_eq!(held.len(), QUEUE_OF_ONE);
        let others: Vec<Ticket> = (2..200).filter_map(|n| Shared::enter(&shared, address(n))).collect();
        assert_eq!(others.len(), QUEUE - QUEUE_OF_ONE);
        drop((held, others));
        assert!(lock(&shared.waiting).is_empty());
    }

    /// A flood holds nobody who is known, and one who is new gets his turn.
    #[test]
    fn a_flood_of_wrong_passwords() {
        let passwords = Arc::new(Passwords::new());
        let good = bcrypt::hash("secret", 8).unwrap();
        run(async {
            let first = Instant::now();
            assert_eq!(passwords.check("a", b"secret", &good, PEER).await, Verdict::Right);
            let once = first.elapsed();
            let flood: Vec<_> = (0..200)
                .map(|n| {
                    let (passwords, good) = (Arc::clone(&passwords), good.clone());
                    let peer = IpAddr::from([10, 1, 1, 1]);
                    tokio::spawn(async move {
                        passwords.check("a", format!("w{n}").as_bytes(), &good, peer).await
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            let begun = Instant::now();
            assert_eq!(passwords.check("a", b"secret", &good, PEER).await, Verdict::Right);
            let known = begun.elapsed();
            let other = bcrypt::hash("new", 8).unwrap();
            assert_eq!(passwords.check("b", b"new", &other, PEER).await, Verdict::Right);
            let fresh = begun.elapsed();
            let mut counts = [0; 3];
            for one in flood {
                counts[one.await.unwrap() as usize] += 1;
            }
            println!("one {once:?}, known under flood {known:?}, new under flood {fresh:?}; {counts:?}");
            assert_eq!(counts, [0, QUEUE_OF_ONE, 200 - QUEUE_OF_ONE]);
        });
    }
}
