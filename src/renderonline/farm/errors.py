"""Every error that RenderOnline tells a person about.

    RenderOnlineError
    ├── InvalidRequest      400  what was sent can't be understood or breaks a rule
    ├── NotAuthenticated    401  who is asking is not known
    ├── NotAllowed          403  who is asking may not do this
    ├── NotFound            404  what is asked for does not exist (or is not theirs)
    ├── Conflict            409  it can't be done in the present state
    ├── TooLarge            413  more bytes than allowed
    ├── LimitReached        429  a queue or running limit stands in the way
    ├── NotAvailable        503  a part of the farm that is needed does not answer
    └── NoSpace             507  the disk is full

``code`` is stable and documented in ``docs/reference/errors.md``; ``status`` is the HTTP status.
"""

from typing import ClassVar


class RenderOnlineError(Exception):
    """The base of all errors meant for users; the message says what to do next."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason_code = code or self.code


class InvalidRequest(RenderOnlineError):
    """What was sent can't be understood or breaks a rule."""

    code = "invalid_request"
    status = 400


class NotAuthenticated(RenderOnlineError):
    """Who is asking is not known: e-mail or token is wrong, or the account is not active."""

    code = "not_authenticated"
    status = 401


class NotAllowed(RenderOnlineError):
    """Who is asking may not do this."""

    code = "not_allowed"
    status = 403


class NotFound(RenderOnlineError):
    """What is asked for does not exist, or belongs to somebody else."""

    code = "not_found"
    status = 404


class Conflict(RenderOnlineError):
    """It can't be done in the present state."""

    code = "conflict"
    status = 409


class TooLarge(RenderOnlineError):
    """More bytes than allowed."""

    code = "too_large"
    status = 413


class LimitReached(RenderOnlineError):
    """A queue or running limit stands in the way."""

    code = "limit_reached"
    status = 429


class NotAvailable(RenderOnlineError):
    """A part of the farm that is needed does not answer."""

    code = "not_available"
    status = 503


class NoSpace(RenderOnlineError):
    """The disk is full."""

    code = "no_space"
    status = 507
