"""The command line's own span, and the W3C trace context that ties a change to everything it causes.

The ids are made without the SDK; it is loaded only to write the span, when a file is named for that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


def _random(size: int) -> int:
    # Zero is not a valid id.
    return int.from_bytes(os.urandom(size)) or 1


@dataclass(slots=True)
class Trace:
    """The trace of one invocation. name: what was typed, without values. file: where its span goes; empty: nowhere."""

    trace_id: int
    span_id: int
    start: int
    name: str = "kumi"
    file: str = ""

    @classmethod
    def begin(cls) -> Trace:
        return cls(_random(16), _random(8), time.time_ns())

    @property
    def traceparent(self) -> str:
        """The value of the W3C header, sampled."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def used_by(self, command: str, file: str) -> None:
        """Called when the invocation turns to the API; $KUMI_TRACE_FILE goes before the profile's file."""
        self.name = command
        self.file = os.environ.get("KUMI_TRACE_FILE") or file


def record(trace: Trace, exit_code: int) -> None:
    """Append the span to the trace's file, if it has one. A file that cannot be written is told, and nothing more."""
    if not trace.file:
        return
    try:
        with Path(trace.file).open("a", encoding="utf-8") as out:
            _span(trace, exit_code, out.write)
    except OSError as error:
        click.echo(f"kumi: trace file {trace.file} cannot be written: {error.strerror}", err=True)


def _span(trace: Trace, exit_code: int, write: Callable[[str], object]) -> None:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        """The ids that were sent to the server before the SDK was loaded."""

        def generate_trace_id(self) -> int:
            return trace.trace_id

        def generate_span_id(self) -> int:
            return trace.span_id

    class Lines(SpanExporter):
        """One JSON object a line."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for span in spans:
                write(_line(span))
            return SpanExportResult.SUCCESS

    provider = TracerProvider(resource=Resource({"service.name": "kumi"}), id_generator=Ids(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Lines()))
    span = provider.get_tracer("kumi").start_span(trace.name, start_time=trace.start)
    span.set_attribute("kumi.exit_code", exit_code)
    span.end()
    provider.shutdown()


def _line(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None, "a span that ended has its context"
    parent = span.parent
    return (
        json.dumps(
            {
                "name": span.name,
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "parent_id": f"{parent.span_id:016x}" if parent else None,
                "start": span.start_time,
                "end": span.end_time,
                "attributes": dict(span.attributes or {}),
            }
        )
        + "\n"
    )
