"""The body of a request: read as bytes, and made a message where a fault of it can be answered.

gRPC's own way, a deserializer, tells a client whose bytes are no message that the server is broken (UNKNOWN), and reads the
message of everybody before it is known who calls.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from controlplane.errors import ApiError, Code

LARGEST = 1 << 20  # bytes
LARGEST_APPLY = 8 << 20


def parse(message: type[Any], body: bytes, largest: int = LARGEST) -> Any:
    """The request. Raises TOO_MANY_VALUES, STRING_INVALID."""
    if len(body) > largest:
        text = f"the request has {len(body)} bytes; at most {largest} are accepted"
        raise ApiError(Code.INVALID_ARGUMENT, "TOO_MANY_VALUES", text)
    try:
        return message.FromString(body)
    except DecodeError:
        text = f"the bytes are no {message.DESCRIPTOR.full_name}; send one as protobuf encodes it, with UTF-8 in its texts"
        raise ApiError(Code.INVALID_ARGUMENT, "STRING_INVALID", text) from None
