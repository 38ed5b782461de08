"""What tests of security groups make, and what the store holds of it."""

from __future__ import annotations

from typing import Any

import grpc

from controlplane.store import keys
from kumihimo.v1 import resource_pb2, security_pb2, store_pb2
from tests.component.cloud import Client, Cloud

Code = grpc.StatusCode
ACTIVE, PENDING = resource_pb2.STATE_ACTIVE, resource_pb2.STATE_PENDING
INGRESS, EGRESS = security_pb2.DIRECTION_INGRESS, security_pb2.DIRECTION_EGRESS


async def group(api: Client, name: str = "web", by: str = "alice", **fields: Any) -> Any:
    return await api.create("SecurityGroup", by=by, name=name, **fields)


async def port(api: Client, network: str, *groups: Any, **fields: Any) -> Any:
    ids = [item.id for item in groups]
    return await api.create("Port", by="alice", network_id=network, security_group_ids=ids, **fields)


async def rule(api: Client, of: Any, by: str = "alice", **fields: Any) -> Any:
    return await api.create("SecurityGroupRule", by=by, **{"security_group_id": of.id, "direction": INGRESS, **fields})


async def rules_of(api: Client, group_id: str) -> list[Any]:
    return list((await api.list("SecurityGroupRule", filter=f'security_group_id = "{group_id}"')).items)


async def members(cloud: Cloud, group_id: str) -> dict[str, list[str]]:
    """Port → what its group holds of it."""
    folder = keys.members(group_id)
    found = {key: entry for key, entry in (await cloud.everything()).items() if key.startswith(folder)}
    return {key[len(folder) :]: list(store_pb2.Member.FromString(entry.value).addresses) for key, entry in found.items()}


async def cut(cloud: Cloud, group_id: str, folder: str = "secgroup") -> int:
    """The revision at which something was last taken away from a group; 0: nothing ever was."""
    entry = await cloud.store.get(keys.cut_of(keys.scope(group_id, folder)))
    return entry.mod_revision if entry is not None else 0
