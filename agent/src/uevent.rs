//! The kernel's events of devices and modules, for a process without any privilege.
//!
//! Anybody may listen, and the kernel sends them to every network namespace that belongs to the initial user namespace: that of a pod is one,
//! unless the pod has a user namespace of its own. There, and where a sandbox knows no such sockets (gVisor), there are none.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_core::uevent::Uevent;
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The group that the kernel itself sends to; the next one is udev's.
const KERNEL: u32 = 1;
/// Longest event that the kernel makes, with room to spare.
const LONGEST: usize = 8192;

/// An open socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Listens from now on. An error where nothing would ever come.
    pub fn open() -> io::Result<Self> {
        if !in_initial_user_namespace(&std::fs::read_to_string("/proc/self/uid_map")?) {
            return Err(io::Error::other("this user namespace gets none"));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Reads all that has come, and says whether any of it concerns GPUs.
    pub fn take(&self) -> bool {
        let mut concerns = false;
        let mut message = [0; LONGEST];
        loop {
            match recv(&self.0, &mut message[..], RecvFlags::empty()) {
                Ok((read, _)) => {
                    let event = Uevent::parse(message.get(..read).unwrap_or_default());
                    concerns |= event.is_some_and(|e| e.concerns_gpus());
                }
                // Some were dropped: any of them may have been about a GPU.
                Err(Errno::NOBUFS) => concerns = true,
                Err(Errno::INTR) => {}
                Err(_) => return concerns,
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `uid_map` of a process there: all users, each as itself.
fn in_initial_user_namespace(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn the_kernel_is_heard_and_what_is_no_gpu_does_not_count() {
        // A word about nothing: that the null device is there.
        let say = || std::fs::write("/sys/class/mem/null/uevent", "change");
        let socket = match (Socket::open(), say()) {
            (Ok(socket), Ok(())) => socket,
            (Err(why), _) | (_, Err(why)) => return eprintln!("skipped: {why}; root on a machine of its own can"),
        };
        say().unwrap();
        let mut readable = [PollFd::new(&socket, PollFlags::IN)];
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut readable, Some(&patience)), Ok(1));
        assert!(!socket.take());
    }

    #[test]
    fn a_user_namespace_is_known_by_its_map() {
        assert!(in_initial_user_namespace("         0          0 4294967295\n"));
        assert!(!in_initial_user_namespace("         0     231072      65536\n"));
        assert!(!in_initial_user_namespace("0 0 65536\n65536 65536 4294901759\n"));
        assert!(!in_initial_user_namespace(""));
    }
}
