//! Threads with a stack large enough for compiling and evaluating policy conditions.
//!
//! The expression library recurses: on an ordinary stack a long condition ends the process, which no handler
//! can catch. Whoever touches conditions does so through here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

/// Stack of each thread here.
pub const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Also on one processor one long job must leave a thread to short ones.
const THREADS_MIN: usize = 2;
const THREADS_MAX: usize = 8;
const SPAWN_RETRY: Duration = Duration::from_millis(50);

type Job = Box<dyn FnOnce() + Send>;
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// Runs `job` on a large stack and waits for it. A panic in `job` continues in the caller.
///
/// Must not be called from async code, which it would block: use [`run_async`] there.
pub fn run<T, F>(job: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    submit(pool(), job, sender);
    unwrap_outcome(receiver.blocking_recv())
}

/// Runs `job` on a large stack without blocking the caller's thread. A panic in `job` continues in the caller.
pub async fn run_async<T, F>(job: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    submit(pool(), job, sender);
    unwrap_outcome(receiver.await)
}

/// The same for what may take seconds, such as compiling a policy: one after the other, on a thread of their own,
/// so that no decision waits for one.
pub async fn run_aside_async<T, F>(job: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    submit(aside(), job, sender);
    unwrap_outcome(receiver.await)
}

fn submit<T, F>(pool: &Sender<Job>, job: F, reply: oneshot::Sender<Outcome<T>>)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let job: Job = Box::new(move || {
        let outcome = catch_unwind(AssertUnwindSafe(job));
        let _ = reply.send(outcome);
    });
    // The receivers live in the pool's threads, which never end, so a send cannot fail.
    let _ = pool.send(job);
}

fn unwrap_outcome<T>(received: Result<Outcome<T>, oneshot::error::RecvError>) -> T {
    match received {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(lost) => resume_unwind(Box::new(lost)),
    }
}

fn pool() -> &'static Sender<Job> {
    static POOL: OnceLock<Sender<Job>> = OnceLock::new();
    POOL.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        threads(processors.clamp(THREADS_MIN, THREADS_MAX))
    })
}

fn aside() -> &'static Sender<Job> {
    static ASIDE: OnceLock<Sender<Job>> = OnceLock::new();
    ASIDE.get_or_init(|| threads(1))
}

fn threads(count: usize) -> Sender<Job> {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    spawn_until_one_runs(&receiver);
    for _ in 1..count {
        let _ = spawn_worker(&receiver);
    }
    sender
}

/// The system refuses a thread only for want of memory or process slots; there is no work without one, so wait.
fn spawn_until_one_runs(receiver: &Arc<Mutex<Receiver<Job>>>) {
    while let Err(error) = spawn_worker(receiver) {
        tracing::error!(%error, "cannot start a thread for policy evaluation; trying again");
        thread::sleep(SPAWN_RETRY);
    }
}

fn spawn_worker(receiver: &Arc<Mutex<Receiver<Job>>>) -> std::io::Result<()> {
    let receiver = Arc::clone(receiver);
    let builder = thread::Builder::new()
        .name("policy".to_owned())
        .stack_size(STACK_BYTES);
    builder.spawn(move || work(&receiver)).map(drop)
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        job();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[inline(never)]
    fn deep(levels: usize) -> usize {
        let frame = std::hint::black_box([levels; 128]);
        if levels == 0 {
            frame.len()
        } else {
            deep(levels - 1) + std::hint::black_box(frame).len()
        }
    }

    #[test]
    fn recursion_that_overflows_an_ordinary_stack_succeeds() {
        // 2,500 frames of at least 1 KiB: more than a test thread's 2 MiB.
        assert_eq!(run(|| deep(2_500)), 2_501 * 128);
    }

    #[tokio::test]
    async fn async_callers_get_the_value() {
        assert_eq!(run_async(|| 7).await, 7);
    }

    #[tokio::test]
    async fn long_jobs_leave_threads_to_short_ones_also_on_one_processor() {
        let (release, held) = channel::<()>();
        let (release_aside, held_aside) = channel::<()>();
        let long = tokio::spawn(run_async(move || held.recv().is_err()));
        let aside = tokio::spawn(run_aside_async(move || held_aside.recv().is_err()));
        assert_eq!(run_async(|| 1).await, 1);
        drop((release, release_aside));
        assert!(long.await.unwrap() && aside.await.unwrap());
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives_it() {
        let panicked = catch_unwind(|| run(|| -> () { panic!("from the job") }));
        assert!(panicked.is_err());
        for _ in 0..THREADS_MAX * 2 {
            assert_eq!(run(|| 1), 1);
        }
    }
}
