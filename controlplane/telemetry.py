"""Logs and spans of a process: one structured line an event on stderr, one JSON line a span into a file.

Used by the API and by the agent, so that the spans of one request can be joined by their trace id.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class FileExporter(SpanExporter):
    """Appends each span as one line of JSON: name, trace_id, span_id, parent_id, start, end (ns), attributes, service."""

    def __init__(self, path: Path, service: str) -> None:
        self._file = path.open("a", buffering=1)
        self._service = service

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context, parent = span.get_span_context(), span.parent
            line = {
                "name": span.name,
                "service": self._service,
                "trace_id": format(context.trace_id, "032x") if context else "",
                "span_id": format(context.span_id, "016x") if context else "",
                "parent_id": format(parent.span_id, "016x") if parent else "",
                "start": span.start_time,
                "end": span.end_time,
                "attributes": dict(span.attributes or {}),
            }
            self._file.write(json.dumps(line) + "\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def start_tracing(service: str, path: Path | None) -> None:
    """Record spans into a file from now on; without a path spans cost next to nothing and go nowhere."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(FileExporter(path, service), schedule_delay_millis=500))
    trace.set_tracer_provider(provider)


def start_logging(**bound: str) -> None:
    """Structured lines on stderr (logfmt), level INFO and above, each with the bound pairs."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
