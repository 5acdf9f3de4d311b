//! The file descriptors that containerd's shim hands over.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

const STDOUT: RawFd = 3;
const STDERR: RawFd = 4;
const READY: RawFd = 5;

pub(crate) struct Pipes {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Closing it tells the shim to start the replica.
    pub(crate) ready: OwnedFd,
}

/// Takes them over; to be called once, at the start. The error names the one that is missing.
pub(crate) fn take() -> Result<Pipes, RawFd> {
    for fd in [STDOUT, STDERR, READY] {
        // SAFETY: the borrow lasts for one fcntl, which answers EBADF for a number that is not open.
        let open = fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD);
        if open.is_err() {
            return Err(fd);
        }
    }
    // SAFETY: the three are open (just checked) and were inherited: this program has opened nothing yet,
    // and std claims only 0, 1 and 2, so nothing else owns them, and `take` is called once.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Pipes {
        stdout: own(STDOUT),
        stderr: own(STDERR),
        ready: own(READY),
    })
}
