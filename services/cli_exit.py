"""Exit codes of every command, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum

from eventq.events.errors import BrokerUnfit, Conflict, EventqError, InvalidInput, NotFound, Unavailable


class ExitCode(IntEnum):
    """Part of the interface, as the codes of errors are: scripts switch on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    CONFLICT = 5
    WAIT_TIMED_OUT = 124
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the task (or the check) failed",
    ExitCode.USAGE: "wrong arguments, input or settings",
    ExitCode.UNREACHABLE: "the API or NATS cannot be reached, or cannot serve now",
    ExitCode.NOT_FOUND: "no such task or file",
    ExitCode.CONFLICT: "refused because of the present state",
    ExitCode.WAIT_TIMED_OUT: "--wait-timeout passed; the task goes on",
    ExitCode.INTERRUPTED: "interrupted",
}

# Refusals of the HTTP layer itself are the caller's mistakes as well.
_USAGE_CODES = frozenset(
    {
        "USAGE",
        "INVALID_SETTINGS",
        "DATA_DIR_UNUSABLE",
        "TASKS_UNUSABLE",
        "BAD_REQUEST",
        "UNSUPPORTED_MEDIA_TYPE",
        "MISDIRECTED_HOST",
        "CROSS_SITE",
        "IDEMPOTENCY_KEY_REUSED",
    }
)


def exit_code_of(error: EventqError) -> ExitCode:
    """The code with which a command ends that raised ``error``."""
    match error:
        case InvalidInput():
            return ExitCode.USAGE
        case NotFound():
            return ExitCode.NOT_FOUND
        case Conflict():
            return ExitCode.CONFLICT
        case Unavailable() | BrokerUnfit():
            return ExitCode.UNREACHABLE
        case _:
            return ExitCode.USAGE if error.code in _USAGE_CODES else ExitCode.FAILED


def exit_code_of_task(status: str) -> ExitCode:
    """The code for a task that was waited for and ended as ``status``."""
    return ExitCode.DONE if status == "COMPLETED" else ExitCode.FAILED
