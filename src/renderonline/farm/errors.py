"""Every error that RenderOnline reports to people.

    RenderOnlineError
    ├── InvalidRequest      400  the request can't be understood or breaks a rule
    │   └── Unfit           422  the request can be understood, but its values are not possible
    ├── NotAuthenticated    401  the caller is unknown: wrong e-mail or token, or an inactive account
    ├── NotAllowed          403  the caller may not do this
    ├── NotFound            404  it does not exist (or belongs to another user)
    ├── Conflict            409  it can't be done in the present state
    ├── TooLarge            413  more bytes than allowed
    ├── LimitReached        429  a queue or running limit is reached
    ├── NotAvailable        503  a necessary part of the farm does not answer
    └── NoSpace             507  the disk is full

``code`` is stable and documented in ``docs/reference/errors.md``; ``status`` is the HTTP status.
"""

from typing import Any, ClassVar


class RenderOnlineError(Exception):
    """The base of all errors for users. The message says what to do next; `details` are more fields for programs."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.reason_code = code or self.code
        self.details = details


class InvalidRequest(RenderOnlineError):
    code, status = "invalid_request", 400


class Unfit(InvalidRequest):
    code, status = "unfit", 422


class NotAuthenticated(RenderOnlineError):
    code, status = "not_authenticated", 401


class NotAllowed(RenderOnlineError):
    code, status = "not_allowed", 403


class NotFound(RenderOnlineError):
    code, status = "not_found", 404


class Conflict(RenderOnlineError):
    code, status = "conflict", 409


class TooLarge(RenderOnlineError):
    code, status = "too_large", 413


class LimitReached(RenderOnlineError):
    code, status = "limit_reached", 429


class NotAvailable(RenderOnlineError):
    code, status = "not_available", 503


class NoSpace(RenderOnlineError):
    code, status = "no_space", 507
