"""Turn a user's mistake, or the machine's trouble, into one line and an exit status."""

import errno
import sys

import click

USAGE = 2
FAILED = 1
INTERRUPTED = 130
STOPPED = "stopped; the same command goes on from here"


def explain(error: BaseException) -> tuple[str, int] | None:
    """Say in one line what went wrong, and with which exit status to leave.

    Returns
    -------
    tuple of str and int, or None
        None for an error that is nobody's mistake but ours: its traceback is what helps.
    """
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message()), USAGE
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return STOPPED, INTERRUPTED
    if isinstance(error, OSError):
        explained = _explain_os_error(error)
        return None if explained is None else (explained, FAILED)
    # Looked up, not imported: what raised it has imported the module, else it is none of these.
    errors = sys.modules.get("fedcompress.errors")
    if errors is not None and isinstance(error, errors.FedcompressError):
        usage = isinstance(error, errors.ConfigError)
        return _one_line(str(error)), USAGE if usage else FAILED
    return None


def _explain_os_error(error: OSError) -> str | None:
    place = f" {error.filename}" if error.filename else ""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        failing = ", or failing," if error.errno == errno.EIO else ""
        return (
            f"disk full{failing}{' at' + place if place else ''} ({what}); free some space and "
            "run the same command again to go on"
        )
    if error.errno == errno.EADDRINUSE:
        return f"port in use ({what}); end what listens there, or choose another port"
    if isinstance(error, ConnectionError):
        return f"no connection ({what}); is the other side running, and the address right?"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"may not write or read{place} ({what}); choose another folder, or mend its rights"
    if error.filename:
        return f"{error.filename}: {what}"
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
