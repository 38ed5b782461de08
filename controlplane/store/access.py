"""Users and roles of etcd: who may read and write what, as tables, and the calls that make it so.

etcd takes the common name of a client's certificate for the user's name (`--client-cert-auth`); no user has a password that
anybody knows. The API is `kumi-api` with role root. A node is `node-{id}` with a role of the same name, whose permissions are
`permissions(id)` and nothing more; each range ends behind a "/", so that h1 has no say in what is h10's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from aetcd.rpc import auth_pb2
from aetcd.rpc import rpc_pb2 as pb

from controlplane.errors import StoreRefused, StoreUnavailable
from controlplane.store import keys
from controlplane.store.client import Store
from controlplane.tls import API_USER, NODE_PREFIX, node_user

ROOT = "root"
SECRETS = keys.ROOT + "secret/"
ELECTIONS = keys.ROOT + "elect/"

_READ, _WRITE = auth_pb2.Permission.READ, auth_pb2.Permission.READWRITE
_ABSENT = ("user name not found", "role name not found", "role is not granted to the user")
_NO_ROOT = ("root user does not exist", "root user does not have root role")
_PRESENT = ("user name already exists", "role name already exists")

# What whoever has a node's certificate can do where users are not held to their roles, the worst first, with the advisories
# and the first patch of each release that is sound.
_FLAWS = (
    # Transactions inside transactions; leases, alarms and compaction; leases and former values in transactions.
    ("write and read everything", "CVE-2026-33343, CVE-2026-33413, CVE-2026-44283", {(3, 4): 44, (3, 5): 30, (3, 6): 11}),
    # Watches without an end.
    ("read everything that changes", "CVE-2026-73499", {(3, 5): 33, (3, 6): 14, (3, 7): 1}),
)
_SOUND = ", ".join(f"{major}.{minor}.{patch}" for (major, minor), patch in _FLAWS[-1][-1].items())

_log = structlog.get_logger("kumihimo.access")


class CannotProtect(Exception):
    """etcd's users cannot be switched on; the message says what to change."""


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """What may be done (etcd's permType) with a range of keys, `end` excluded; no end: with the one key."""

    key: bytes
    end: bytes
    kind: int = _READ


def permissions(node_id: str) -> frozenset[Permission]:
    """All that a node may do."""
    own_secrets, own_status = f"{SECRETS}{node_id}/", keys.status(node_id)
    return frozenset(
        {
            Permission(keys.ROOT.encode(), SECRETS.encode()),
            Permission(keys.end_of(SECRETS), keys.end_of(keys.ROOT)),
            Permission(own_secrets.encode(), keys.end_of(own_secrets)),
            Permission(own_status.encode(), keys.end_of(own_status), _WRITE),
            Permission(keys.alive(node_id).encode(), b"", _WRITE),
            # Which places a node may stand for is not known to etcd; see DESIGN.
            Permission(ELECTIONS.encode(), keys.end_of(ELECTIONS), _WRITE),
        }
    )


class Access:
    """Changes etcd's users and roles. Methods may be repeated and may run in several replicas at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def protect(self) -> None:
        """Switch users on, unless they are. Raises CannotProtect, and changes nothing that would lock everybody out."""
        store = self._store
        if store.user != API_USER:
            raise CannotProtect(
                f"etcd_certificate is that of {store.user!r}, but the API is {API_USER!r} in etcd;"
                " `kumi pki issue DIR NAME --for api` makes one"
            )
        try:
            if await self._ask(store.auth.AuthEnable, pb.AuthEnableRequest(), _NO_ROOT):
                return
            # Known to this call alone, and only for the way back.
            password = secrets.token_urlsafe(32)
            made = await self._ask(store.auth.UserAdd, pb.AuthUserAddRequest(name=ROOT, password=password), _PRESENT)
            await self._grant(ROOT, ROOT)
            await self._add_user(API_USER)
            await self._grant(API_USER, ROOT)
            await self._ask(store.auth.AuthEnable, pb.AuthEnableRequest())
            _log.info("etcd has users from now on", user=API_USER)
        except StoreRefused as error:
            raise CannotProtect(f"{error}; its user {API_USER} must have role {ROOT}") from None
        try:
            await store.revision()
        except StoreRefused:
            if made:
                await self._disable(password)
            raise CannotProtect(
                f"etcd at {store.endpoints} does not know its clients by their certificates; start it with --client-cert-auth"
            ) from None

    async def weakness(self) -> str:
        """What etcd's version means for its users' limits, as a sentence; empty when they hold."""
        status = await self._ask(self._store.maintenance.Status, pb.StatusRequest())
        return weakness(status.version)

    async def _disable(self, password: str) -> None:
        store = self._store
        reply = await self._ask(store.auth.Authenticate, pb.AuthenticateRequest(name=ROOT, password=password))
        await store.auth.AuthDisable(pb.AuthDisableRequest(), metadata=(("token", reply.token),), timeout=5)

    async def nodes(self) -> set[str]:
        """Ids of the nodes that have a user or a role."""
        users = await self._ask(self._store.auth.UserList, pb.AuthUserListRequest())
        roles = await self._ask(self._store.auth.RoleList, pb.AuthRoleListRequest())
        return {name.removeprefix(NODE_PREFIX) for name in (*users.users, *roles.roles) if name.startswith(NODE_PREFIX)}

    async def admit(self, node_id: str) -> bool:
        """Give a node its user and its role, with exactly the permissions it is to have. Whether anything was missing."""
        name, auth = node_user(node_id), self._store.auth
        changed = False
        role = await self._ask(auth.RoleGet, pb.AuthRoleGetRequest(role=name), _ABSENT)
        if role is None:
            changed = True
            await self._ask(auth.RoleAdd, pb.AuthRoleAddRequest(name=name), _PRESENT)
        wanted, found = permissions(node_id), _found(role.perm if role else ())
        # Taken away first: etcd knows a permission by its range, and what differs in kind would else be taken away after.
        for extra in found - wanted:
            changed = True
            request = pb.AuthRoleRevokePermissionRequest(role=name, key=extra.key, range_end=extra.end)
            await self._ask(auth.RoleRevokePermission, request, ("permission is not granted to the role",))
        for missing in wanted - found:
            changed = True
            perm = auth_pb2.Permission(permType=missing.kind, key=missing.key, range_end=missing.end)
            await self._ask(auth.RoleGrantPermission, pb.AuthRoleGrantPermissionRequest(name=name, perm=perm))
        user = await self._ask(auth.UserGet, pb.AuthUserGetRequest(name=name), _ABSENT)
        if user is None:
            changed = True
            await self._add_user(name)
        if user is None or list(user.roles) != [name]:
            changed = True
            for extra_role in set(user.roles) - {name} if user else ():
                request = pb.AuthUserRevokeRoleRequest(name=name, role=extra_role)
                await self._ask(auth.UserRevokeRole, request, _ABSENT)
            await self._grant(name, name)
        return changed

    async def dismiss(self, node_id: str) -> None:
        """Take a node's user and role away."""
        name, auth = node_user(node_id), self._store.auth
        await self._ask(auth.UserDelete, pb.AuthUserDeleteRequest(name=name), _ABSENT)
        await self._ask(auth.RoleDelete, pb.AuthRoleDeleteRequest(role=name), _ABSENT)

    async def _add_user(self, name: str) -> None:
        request = pb.AuthUserAddRequest(name=name, options=auth_pb2.UserAddOptions(no_password=True))
        await self._ask(self._store.auth.UserAdd, request, _PRESENT)

    async def _grant(self, user: str, role: str) -> None:
        await self._ask(self._store.auth.UserGrantRole, pb.AuthUserGrantRoleRequest(user=user, role=role))

    async def _ask(self, method: Any, request: Any, expected: Sequence[str] = ()) -> Any:
        """The reply; None when etcd answers one of the expected errors."""
        try:
            return await self._store.call(method, request)
        except grpc.aio.AioRpcError as error:
            detail = (error.details() or error.code().name).removeprefix("etcdserver: ")
            if detail in expected:
                return None
            raise StoreUnavailable(f"etcd at {self._store.endpoints}: {detail}") from error


def weakness(version: str) -> str:
    """What an etcd of this version lets nodes do that their roles do not, as a sentence; empty when nothing is known."""
    release, patch = _version(version)
    for what, advisories, sound in _FLAWS:
        if release <= max(sound) and patch < sound.get(release, patch + 1):
            return (
                f"etcd {version} does not hold nodes to their roles: whoever has a node's certificate can {what}"
                f" ({advisories}); {_SOUND} and later do"
            )
    return ""


def _version(text: str) -> tuple[tuple[int, int], int]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    major, minor, patch = map(int, found.groups()) if found else (0, 0, 0)
    return (major, minor), patch


def _found(granted: Sequence[Any]) -> frozenset[Permission]:
    return frozenset(Permission(item.key, item.range_end, item.permType) for item in granted)
