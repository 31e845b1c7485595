"""What the routes call: one object with every use case of a running RenderAPI, and how a request comes to it."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import HTTPConnection

from renderonline.renderapi.administration import Administration
from renderonline.renderapi.attempt_transfers import AttemptTransfers
from renderonline.renderapi.auth import Authenticator, Principal
from renderonline.renderapi.control import Control
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.renderapi.enrolments import Enrolments
from renderonline.renderapi.events import Events
from renderonline.renderapi.metrics import Metrics
from renderonline.renderapi.previews import Previews
from renderonline.renderapi.reading import Reading
from renderonline.renderapi.sessions import Sessions
from renderonline.renderapi.submissions import Submissions


@dataclass(frozen=True, slots=True)
class Services:
    """Every use case."""

    authenticator: Authenticator
    sessions: Sessions
    submissions: Submissions
    reading: Reading
    control: Control
    administration: Administration
    enrolments: Enrolments
    dispatcher: Dispatcher
    transfers: AttemptTransfers
    previews: Previews
    events: Events
    metrics: Metrics
    fingerprint: str
    """`sha256:…` of the certificate that this server shows, "" without TLS."""


def services_of(connection: HTTPConnection) -> Services:
    """The use cases of the RenderAPI that this request came to."""
    return cast("Services", connection.app.state.services)


async def principal_of(connection: HTTPConnection) -> Principal:
    """Who is asking, by the headers email and token or else by a session of the web page, or `NotAuthenticated`."""
    services = services_of(connection)
    if not {"email", "token"} & set(connection.headers):
        found = await services.sessions.principal(connection)
        if found is not None:
            return found
    return await services.authenticator.principal(connection.headers)
