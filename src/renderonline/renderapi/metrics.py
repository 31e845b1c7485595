"""Figures for Prometheus (`/metrics`): requests, machines by status, events, and the process itself."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from renderonline import __version__

CONTENT_TYPE: Final[str] = prometheus.CONTENT_TYPE_LATEST
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)

Gauges = Callable[[], Mapping[str, float]]
"""Asked at each scrape: figures of the farm by name."""


class Metrics:
    """The figures of one RenderAPI."""

    def __init__(self, machines: Callable[[], Iterable[Mapping[str, Any]]], gauges: Gauges) -> None:
        self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self._registry)
        prometheus.GCCollector(registry=self._registry)
        build = prometheus.Info("renderonline_build", "The version that runs.", registry=self._registry)
        build.info({"version": __version__})
        self._requests = prometheus.Counter(
            "renderonline_requests",
            "Requests that were answered.",
            ("method", "endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = prometheus.Histogram(
            "renderonline_request_seconds",
            "Seconds until the head of the answer left.",
            ("endpoint",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_Farm(machines, gauges))

    def answered(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count a request. `endpoint` is the name of what answered it, so that there are only so many."""
        self._requests.labels(method, endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus' text form."""
        return bytes(prometheus.generate_latest(self._registry))


class _Farm:
    """What is asked only when somebody scrapes."""

    def __init__(self, machines: Callable[[], Iterable[Mapping[str, Any]]], gauges: Gauges) -> None:
        self._machines = machines
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The figures now."""
        family = GaugeMetricFamily("renderonline_machines", "Machines by status.", labels=["status"])
        for status, count in sorted(Counter(str(machine["status"]) for machine in self._machines()).items()):
            family.add_metric([status], count)
        yield family
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"renderonline_{name}", name.replace("_", " ").capitalize() + ".", value=value)


class MeasuredRequests:
    """Middleware that counts requests and takes their time."""

    _METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

    def __init__(self, app: ASGIApp, answered: Callable[[str, str, int, float], None]) -> None:
        self._app = app
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in self._METHODS else "other"
                endpoint = getattr(scope.get("endpoint"), "__name__", "none")
                self._answered(method, endpoint, message["status"], time.perf_counter() - begun)
            await send(message)

        await self._app(scope, receive, measured)
