"""The faults of an apply: what is told of many."""

from __future__ import annotations

from controlplane.api.faults import LARGEST, Faults, wrong
from controlplane.errors import ApiError, Code
from kumihimo.v1 import operations_pb2


def test_faults_are_told_in_the_order_of_the_request_with_the_first_ones_code() -> None:
    faults = Faults()
    faults.add(5, wrong("name", "MISSING_FIELD", "it has none"))
    faults.add(2, ApiError(Code.NOT_FOUND, "REFERENCE_NOT_FOUND", "gone", {"field": "network_id"}))
    error = faults.error()
    assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND")
    assert [violation.field for violation in error.violations] == ["objects[2].network_id", "objects[5].name"]


def test_more_faults_than_a_client_takes_are_counted_and_told_as_far_as_they_fit() -> None:
    faults = Faults()
    for index in range(500):
        for number in range(10):
            faults.add(index, wrong(f"tags[{number}]", "STRING_INVALID", "𝒳" * 5000))
    error = faults.error()
    assert error.metadata["faults"] == "5000"
    assert LARGEST / 2 < operations_pb2.ApplyResponse(faults=error.faults).ByteSize() <= LARGEST
