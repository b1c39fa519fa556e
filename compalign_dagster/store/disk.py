"""What a failed operation of the operating system means, as an error that a person can read."""

import errno
import os

from compalign_dagster.store.base import AccessDeniedError, StoreError, TransientStoreError, missing

NO_OBJECT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}  # no file can be there

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.EMFILE,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


def explain_read(error: OSError, what: str) -> StoreError:
    """The typed error for a look at an object or a folder that failed; `what` names it."""
    return missing(what) if error.errno in NO_OBJECT else _explain(error, f"read {what}")


def explain_write(error: OSError, what: str) -> StoreError:
    """The typed error for a write that failed and has published nothing."""
    return _explain(error, f"put {what}")


def explain_delete(error: OSError, what: str) -> StoreError:
    """The typed error for an object that could not be removed."""
    return _explain(error, f"delete {what}")


def _explain(error: OSError, what: str) -> StoreError:
    code, found = error.errno or 0, os.strerror(error.errno or 0)
    if code in _FORBIDDEN:
        return AccessDeniedError(
            what,
            expected="permission to do this",
            found=found,
            remedy="Mend the owner, the mode or the mount. A file system without hard links cannot hold a store.",
        )
    if code in _FULL:
        return StoreError(
            what,
            expected="room for it",
            found=found,
            remedy="Free space or raise the limit, then run again: nothing was published.",
        )
    if code in _PASSING:
        return TransientStoreError(
            what,
            expected="the disk or the mount to answer",
            found=found,
            remedy="Nothing is damaged by this: look at the mount and at the limits of the process, then run again.",
        )
    return StoreError(
        what,
        expected="success",
        found=found,
        remedy="Look at what lies there: a name that is too long, or a folder where a file should be or the reverse.",
    )
