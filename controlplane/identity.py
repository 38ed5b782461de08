"""Who calls, and what they may do: roles, and the one policy table.

The table denies by default: what has no line in it is allowed to nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from controlplane.errors import ApiError, Code


class Role(IntEnum):
    """Each role includes those before it."""

    READER = 1
    MEMBER = 2
    ADMIN = 3
    OPERATOR = 4


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client: identity, the project it acts for, its highest role there."""

    identity: str
    project: str
    role: Role

    @property
    def is_operator(self) -> bool:
        return self.role >= Role.OPERATOR

    def sees(self, project_id: str) -> bool:
        """Whether an object of this project is visible; what is not is NOT_FOUND."""
        return self.is_operator or project_id == self.project


_READ = ("Get", "List", "Watch")
_WRITE = ("Create", "Update", "Delete")


def _standard(read: Role, write: Role) -> dict[str, Role]:
    return dict.fromkeys(_READ, read) | dict.fromkeys(_WRITE, write)


# kind → verb → the least role. "*" are the kinds that have no line here; a kind that has one has no verb beside its own.
POLICY: Mapping[str, Mapping[str, Role]] = {
    "*": _standard(Role.READER, Role.MEMBER),
    "Network": {**_standard(Role.READER, Role.MEMBER), "GetIpAvailability": Role.READER},
    "AddressGroup": {
        **_standard(Role.READER, Role.MEMBER),
        **dict.fromkeys(("AddAddresses", "RemoveAddresses"), Role.MEMBER),
    },
    "AvailabilityZone": _standard(Role.READER, Role.OPERATOR),
    "DefaultSecurityGroupRule": _standard(Role.READER, Role.OPERATOR),
    "NetworkSegmentRange": _standard(Role.READER, Role.OPERATOR),
    "Node": {**_standard(Role.OPERATOR, Role.OPERATOR), "Inspect": Role.OPERATOR},
    "PhysicalNetwork": _standard(Role.READER, Role.OPERATOR),
    "Port": {
        **_standard(Role.READER, Role.MEMBER),
        **dict.fromkeys(("Bind", "Unbind"), Role.OPERATOR),
        "Explain": Role.READER,
    },
    "Quota": _standard(Role.READER, Role.OPERATOR),
    "SecurityGroup": {**_standard(Role.READER, Role.MEMBER), "ReplaceRules": Role.MEMBER},
    "Settings": _standard(Role.OPERATOR, Role.OPERATOR),
    "SubnetPool": {
        **_standard(Role.READER, Role.MEMBER),
        **dict.fromkeys(("AddPrefixes", "RemovePrefixes", "Onboard"), Role.MEMBER),
    },
    "Operations": {
        "Apply": Role.MEMBER,  # and each object in it as if it came alone
        "ListChanges": Role.READER,
        "ListDrift": Role.OPERATOR,
        "Trace": Role.READER,
        "Wait": Role.READER,
    },
}


def authorize(caller: Caller, kind: str, verb: str) -> None:
    """Raise PERMISSION_DENIED / ROLE_REQUIRED unless the policy table allows the call."""
    least = POLICY.get(kind, POLICY["*"]).get(verb)
    if least is None:
        raise ApiError(Code.PERMISSION_DENIED, "ROLE_REQUIRED", f"{verb} of {kind} is allowed to no role")
    if caller.role < least:
        raise ApiError(
            Code.PERMISSION_DENIED,
            "ROLE_REQUIRED",
            f"{verb} of {kind} needs the role {least.name.lower()}; {caller.identity} has {caller.role.name.lower()}",
            {"role": least.name.lower()},
        )
