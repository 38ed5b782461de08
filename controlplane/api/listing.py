"""Pages of a List. They walk by id, so what exists during the whole walk appears exactly once."""

from __future__ import annotations

import base64
import binascii
import bisect
from collections.abc import Sequence

from controlplane.errors import ApiError, Code, fault

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000


def page_size(asked: int) -> int:
    """How many to show: 100 when not said, never more than 1000. Raises VALUE_OUT_OF_RANGE when negative."""
    if asked < 0:
        raise fault("page_size", "VALUE_OUT_OF_RANGE", f"page_size is {asked}; 0 (the default) to {LARGEST_PAGE} is accepted")
    return min(asked or DEFAULT_PAGE, LARGEST_PAGE)


def token_after(object_id: str) -> str:
    return base64.urlsafe_b64encode(object_id.encode()).decode()


def start_of_page(ids: Sequence[str], token: str) -> int:
    """Index of the first id of a page. Raises PAGE_TOKEN_INVALID."""
    if not token:
        return 0
    try:
        last = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, UnicodeEncodeError, ValueError):
        raise ApiError(
            Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", "page_token is none of ours; leave it empty for the first page"
        ) from None
    return bisect.bisect_right(ids, last)
