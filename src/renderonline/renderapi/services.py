"""What the routes call: one object with every use case of a running RenderAPI, how it is made and how a request comes
to it; and the figures for Prometheus (`/metrics`).
"""

import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, cast

import prometheus_client as prometheus
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from renderonline import __version__
from renderonline.database.door import Database, IdBlocks
from renderonline.farm.errors import NotAuthenticated, NotAvailable, RenderOnlineError
from renderonline.farm.settling import Patience, RetryPolicy
from renderonline.renderapi.administration import Administration
from renderonline.renderapi.attempt_transfers import AttemptTransfers
from renderonline.renderapi.auth import Authenticator, Principal, Sessions, Throttle
from renderonline.renderapi.connected_machines import Clocks, Machine, Machines
from renderonline.renderapi.control import Control
from renderonline.renderapi.downloads import LandedFiles
from renderonline.renderapi.events import Announcer, Events, Notifier, Publisher
from renderonline.renderapi.existing import V1Machine, V1Machines
from renderonline.renderapi.housekeeping import Deliverer, Housekeeping, Places
from renderonline.renderapi.intake import Intake
from renderonline.renderapi.machine_links import LinkedMachine, LinkedMachines
from renderonline.renderapi.memory import BackgroundWork, Memory
from renderonline.renderapi.orders import AttemptFiles, Orders
from renderonline.renderapi.planner import Dispatcher, Leasing
from renderonline.renderapi.reports import Benching, Reports, Watching
from renderonline.renderapi.scene_checks import SceneChecks
from renderonline.renderapi.scene_surveys import SceneFacts
from renderonline.renderapi.settings import Settings
from renderonline.renderapi.submissions import Submissions
from renderonline.renderapi.task_views import TaskViews
from renderonline.renderapi.uploads import Uploads
from renderonline.serving.admission import client_of, let_in
from renderonline.serving.web import TlsFiles
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.images import PreviewFiles

CONTENT_TYPE: Final[str] = prometheus.CONTENT_TYPE_LATEST
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The figures of one RenderAPI."""

    def __init__(self) -> None:
        self._registry = of = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=of)
        prometheus.GCCollector(registry=of)
        build = prometheus.Info("renderonline_build", "The version that runs.", registry=of)
        build.info({"version": __version__})
        labels = ("method", "endpoint", "status")
        self._requests = prometheus.Counter(
            "renderonline_requests", "Requests that were answered.", labels, registry=of
        )
        told = "Seconds until the head of the answer left."
        self._seconds = prometheus.Histogram(
            "renderonline_request_seconds", told, ("endpoint",), buckets=_BUCKETS, registry=of
        )

    def measured(self, app: ASGIApp) -> ASGIApp:
        """Middleware that counts requests, by the name of what answered them, and takes their time."""

        async def measure(scope: Scope, receive: Receive, send: Send) -> None:
            begun = time.perf_counter()

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    method = scope["method"] if scope["method"] in _METHODS else "other"
                    endpoint = getattr(scope.get("endpoint"), "__name__", "none")
                    self._requests.labels(method, endpoint, str(message["status"])).inc()
                    self._seconds.labels(endpoint).observe(time.perf_counter() - begun)
                await send(message)

            await app(scope, receive, sent if scope["type"] == "http" else send)

        return measure

    def render(self, machines: Iterable[Machine], figures: Mapping[str, float]) -> bytes:
        """Everything in Prometheus' text form, with the machines and the farm's figures of now."""
        of = prometheus.CollectorRegistry()
        status = prometheus.Gauge("renderonline_machines", "Machines by status.", ("status",), registry=of)
        boxes = prometheus.Gauge("renderonline_boxes", "Machines by their box.", ("sandbox",), registry=of)
        told = "Files of tasks that a machine without the farm's directory began to fetch; their bytes."
        fetches = prometheus.Gauge("renderonline_input_downloads", told, ("machine",), registry=of)
        fetched = prometheus.Gauge("renderonline_input_bytes", told, ("machine",), registry=of)
        for machine in machines:
            status.labels(machine.status.value).inc()
            boxes.labels(machine.ability.sandbox.value).inc()
            if machine.fetches or machine.fetched_bytes:
                fetches.labels(str(machine.machine_id)).set(machine.fetches)
                fetched.labels(str(machine.machine_id)).set(machine.fetched_bytes)
        for name, value in figures.items():
            told = name.replace("_", " ").capitalize() + "."
            prometheus.Gauge(f"renderonline_{name}", told, registry=of).set(value)
        return bytes(prometheus.generate_latest(self._registry) + prometheus.generate_latest(of))


class Dispatching:
    """Makes the parts that decide what runs where, and joins them; `dispatcher` starts and stops them."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        events: Publisher,
        *,
        data_directory: Path,
        policy: RetryPolicy,
        reserve_mib: int,
        silence_s: float,
        grace_s: float,
        patience: Patience,
        pool_sandbox: Mapping[str, str],
    ) -> None:
        self._database = database
        announcer = Announcer(events)
        self.clocks = clocks = Clocks()
        self.background = background = BackgroundWork()
        self.logs = logs = AttemptLogs(data_directory / "logs", reserve_mib << 20)
        self.previews = PreviewFiles(data_directory / "previews")
        self.landed = LandedFiles(database)
        self.memory = memory = Memory(database, background.wake, clocks, policy)
        self.machines = machines = Machines(announcer.machine, clocks, pool_sandbox)
        self.orders = Orders(database)
        self.files = AttemptFiles(database, background.keep)
        self.benching = Benching(database, machines, background, clocks, bench_s=policy.bench_s)
        self.checks = checks = SceneChecks(
            database,
            ids,
            memory=memory,
            machines=machines,
            orders=self.orders,
            files=self.files,
            background=background,
            clocks=clocks,
            changed=lambda states: self.reports.tasks_changed(states),
        )
        self.reports = Reports(
            database,
            policy,
            memory=memory,
            machines=machines,
            orders=self.orders,
            files=self.files,
            checks=checks,
            benching=self.benching,
            background=background,
            clocks=clocks,
            announcements=announcer,
            previewed=self.previews.there,
        )
        self.links = LinkedMachines(
            partial(
                LinkedMachine,
                memory=memory,
                machines=machines,
                reports=self.reports,
                checks=checks,
                background=background,
                clocks=clocks,
                announcements=announcer,
                logs=logs,
            ),
            database=database,
            memory=memory,
            machines=machines,
            files=self.files,
            reports=self.reports,
            checks=checks,
            background=background,
            clocks=clocks,
            logs=logs,
            let_in=partial(let_in, is_link=True),
        )
        connect = partial(
            V1Machine,
            database=database,
            memory=memory,
            machines=machines,
            files=self.files,
            reports=self.reports,
            background=background,
            clocks=clocks,
            compare=self.landed.settle,
        )
        leasing = Leasing(
            database,
            ids,
            memory=memory,
            machines=machines,
            orders=self.orders,
            files=self.files,
            reports=self.reports,
            checks=checks,
            background=background,
            clocks=clocks,
        )
        self.dispatcher = Dispatcher(
            database,
            ids,
            leasing=leasing,
            memory=memory,
            machines=machines,
            files=self.files,
            reports=self.reports,
            benching=self.benching,
            watching=Watching(self.reports, memory, machines, silence_s=silence_s, grace_s=grace_s, patience=patience),
            checks=checks,
            background=background,
            clocks=clocks,
            links=self.links,
            nodes=V1Machines(machines, connect),
        )
        self.control = Control(
            database,
            memory=memory,
            machines=machines,
            orders=self.orders,
            clocks=clocks,
            announcements=announcer,
            logs=logs,
            remove_previews=self.previews.remove,
            changed=self.reports.tasks_changed,
        )

    def task_views(self) -> TaskViews:
        """What users may see of tasks."""
        return TaskViews(
            self._database,
            memory=self.memory,
            explanations=self.control.explanations,
            logs=self.logs,
            previews=self.previews,
            landed=self.landed,
            leased=self.dispatcher.leased,
        )


class Services:
    """Every use case. `fingerprint`: `sha256:…` of the certificate that this server shows, "" without TLS."""

    def __init__(self, settings: Settings, database: Database, ids: IdBlocks, metrics: Metrics) -> None:
        self.settings = settings
        self.fingerprint = _fingerprint(settings.certificate)
        self.metrics = metrics
        self.events = Events(secrets.token_hex(4))
        self.notifier = Notifier(self.events, database, url=settings.public_url)
        announce = Announcer(self.notifier).task
        self.deliverer = Deliverer(self.notifier.publish, announce, database, settings.delivery_roots)
        self.farm = farm = Dispatching(
            database,
            ids,
            self.deliverer,
            data_directory=settings.data_directory,
            policy=settings.retries,
            reserve_mib=settings.reserve_mib,
            silence_s=settings.silence_s,
            grace_s=settings.return_s,
            patience=Patience(),
            pool_sandbox=settings.pool_boxes,
        )
        self.dispatcher, self.control = farm.dispatcher, farm.control
        self.authenticator = Authenticator(database)
        self.throttle = Throttle()
        self.sessions = Sessions(
            self.authenticator,
            self.throttle,
            settings.data_directory / "sessions.json",
            idle_s=settings.session_idle_s,
            longest_s=settings.session_s,
        )
        places = Places(database, settings)
        self.housekeeping = Housekeeping(
            database,
            places,
            machines=farm.machines,
            delete=farm.control.delete,
            logs=farm.logs,
            previews=farm.previews,
            newest=lambda: farm.memory.newest,
        )
        self.uploads = Uploads(places, self.housekeeping)
        submissions = Submissions(
            database,
            ids,
            farm.dispatcher,
            sends_mail=bool(settings.notify_mail),
            strict=settings.strict_scenes,
            deliver_to=settings.delivery_roots,
        )
        self.intake = Intake(
            database,
            submissions,
            uploads=self.uploads,
            facts=SceneFacts(lambda: farm.machines, places.box, places.roots),
            places=places,
            housekeeping=self.housekeeping,
        )
        self.reading = farm.task_views()
        self.administration = Administration(
            database, self._changed, self.throttle, files=settings.files, data_directory=settings.data_directory
        )
        self.transfers = AttemptTransfers(
            database,
            places,
            machines=farm.machines,
            files=farm.files,
            reports=farm.reports,
            checks=farm.checks,
            landed=farm.landed,
            previews=farm.previews,
        )

    async def _changed(self) -> None:
        self.authenticator.forget()
        self.events.look_again()
        await self.dispatcher.refresh()


def _fingerprint(files: TlsFiles | None) -> str:
    """What a machine may pin: the SHA-256 of the certificate that this server shows."""
    if files is None:
        return ""
    try:
        pem = files.fullchain_pem_path.read_text(encoding="ascii")
        first = pem[pem.index(ssl.PEM_HEADER) : pem.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)]
        return f"sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()}"
    except (OSError, ValueError) as error:
        raise RenderOnlineError(f"The certificate {files.fullchain_pem_path} can't be read: {error}.") from error


def services_of(connection: HTTPConnection) -> Services:
    """The use cases of the RenderAPI that this request came to."""
    return cast("Services", connection.app.state.services)


async def principal_of(connection: HTTPConnection) -> Principal:
    """Who is asking, by the headers email and token or else by a session of the web page, or `NotAuthenticated`."""
    if names_somebody(connection):
        found = await by_headers(connection)
    elif (found := await services_of(connection).sessions.principal(connection)) is not None:
        let_in(connection, f"user {found.user_id}")
    if found is None:
        raise NotAuthenticated("The headers email and token don't name an active user of this farm.")
    return found


def names_somebody(connection: HTTPConnection) -> bool:
    """Whether a request has one of the headers email and token: then its cookie does not count."""
    return not {"email", "token"}.isdisjoint(connection.headers)


def _identity(connection: HTTPConnection) -> tuple[str, str]:
    """The headers email and token. The bytes of an e-mail beyond ASCII are UTF-8; those that are not are Latin-1, in
    which a client of v1 may send it."""
    email, token = (connection.headers.get(name, "") for name in ("email", "token"))
    with contextlib.suppress(UnicodeError):
        email = email.encode("latin-1").decode()
    return email, token


async def by_headers(connection: HTTPConnection) -> Principal | None:
    """Who is asking, by the headers email and token alone; None after a while for a wrong token."""
    services, (email, token) = services_of(connection), _identity(connection)
    found = await services.authenticator.find(email, token)
    if found is not None:
        let_in(connection, f"user {found.user_id}")
    elif email and token:
        await services.throttle.wrong("token", client_of(connection), email)
    return found


async def may_stay(connection: HTTPConnection, caller: Principal) -> bool:
    """Whether who was let in with this request would be let in again, with the same rights; keeps no session open."""
    services = services_of(connection)
    try:
        if names_somebody(connection):
            found = await services.authenticator.find(*_identity(connection))
        else:
            found = await services.sessions.principal(connection, keeps_open=False)
    except NotAvailable:  # the database is away: nobody's rights have changed
        return True
    return found == caller
