//! What a process leaves to its successor: open sockets, and what has to be known of them, in the descriptor store of the
//! service manager (`FileDescriptorStoreMax=`, sd_pid_notify_with_fds(3)), or given to a successor that is there already.
//!
//! Each thing that is left is one [`Parcel`]: a socket in whose queue lie the descriptors that belong together. So none
//! arrives without the other, a successor can look at them without taking them, and the manager, which lets go of
//! descriptors whose other end has hung up, sees nothing of the kind.
//!
//! A process that is killed leaves nothing by itself. What is to outlive that lies in the store all the time: a
//! [`KeptStream`]'s socket and its [`LiveMemory`].

mod direct;
mod keeper;
mod kept;
mod left;
mod live;
mod memory;
mod parcel;
mod store;

pub use direct::{Successor, ask_predecessor};
pub use keeper::{Keeper, Lent};
pub use kept::{KEPT_READ_BYTES_MAX, KeptStream};
pub use left::Left;
pub use live::LiveMemory;
pub use memory::{read_sealed, sealed};
pub use parcel::{Content, PARCEL_DESCRIPTORS_MAX, Parcel};
pub use store::DescriptorStore;

/// What the host's monotonic clock says, which is the same for every process on it until it is started again.
#[must_use]
pub fn monotonic() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    std::time::Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}
