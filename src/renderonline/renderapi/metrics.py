"""Figures for Prometheus (`/metrics`): requests, machines by status, events, and the process itself."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

import prometheus_client as prometheus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from renderonline import __version__
from renderonline.renderapi.machines import Machine

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
