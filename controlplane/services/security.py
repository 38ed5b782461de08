"""Security groups and address groups: the number each is known by, what stands in the way of its end, a project's default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid5

from controlplane.errors import Code, Violation, exhausted, precondition
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.base import Context, Rules, claim_free, first_free, hold, in_use, label, messages, release
from controlplane.services.replacement import replace_rules, take_group
from controlplane.services.rule import begin, referrers
from controlplane.store import keys
from controlplane.store.txn import Transaction
from kumihimo.v1 import security_pb2 as pb

DEFAULT = "default"
KEY_POOL = "group-key"
KEYS = (1, (1 << 24) - 1)
_PROJECTS = UUID("6b756d69-0000-5000-8000-736563677270")  # the namespace of default groups


@lru_cache(1024)
def default_id(project: str) -> str:
    """The id of a project's default group: the same wherever it is made."""
    return str(uuid5(_PROJECTS, project))


def default_group(transaction: Transaction, project: str, context: Context) -> str:
    """The id of a project's default group, which is there and stays until the commit: it is made when there is none."""
    kind, group_id = KINDS["SecurityGroup"], default_id(project)
    if transaction.require(keys.place(kind, group_id)) is None:
        new = pb.SecurityGroup(id=group_id, project_id=project, description="What ports get that name no security group")
        SecurityGroupRules().complete(new, context)
        # It counts in no quota: a port must not fail for want of it. An apply that makes the port states nothing of it.
        draft = kernel.Draft(new, new, [], context.defaults)
        kernel.create(transaction, kind, draft, replace(context, applied=False), counted=False)
    return group_id


class SecurityGroupRules(Rules):
    """See the module."""

    kind = "SecurityGroup"

    def __init__(self) -> None:
        self.changes = {"ReplaceRules": replace_rules}
        self.completes = {"ReplaceRules": take_group}

    def complete(self, new: Any, context: Context) -> None:
        new.is_default = new.id == default_id(new.project_id)
        if new.is_default:
            new.name = new.name or DEFAULT
        if not new.HasField("stateful"):
            new.stateful = True
        new.mode = new.mode or pb.SECURITY_GROUP_MODE_ENFORCE

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.is_default and new.name != DEFAULT:
            text = f"name of a project's default security group cannot change; it is {DEFAULT}"
            yield Violation("name", "IMMUTABLE_FIELD", text)
        if not new.is_default and new.name == DEFAULT:
            text = f"name {DEFAULT} is that of the project's own default security group; take another"
            yield Violation("name", "NAME_TAKEN", text, Code.ALREADY_EXISTS)

    def always_there(self, transaction: Transaction, name: str, project: str, context: Context) -> str:
        return default_group(transaction, project, context) if name == DEFAULT else ""

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        _number(transaction, new, keys.scope(new.id, keys.SECURITY), context)

    def furnish(self, transaction: Transaction, new: Any, context: Context) -> None:
        if not context.applied:  # an apply states the rules
            begin(transaction, new, context)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        if new.stateful != old.stateful and hold(transaction, keys.members(old.id)):
            raise in_use(self.kind, old.id, old.name, _ports(transaction, old.id, context))
        if (new.stateful, new.mode) != (old.stateful, old.mode):
            transaction.cut(keys.scope(old.id, keys.SECURITY), "stateful or mode")

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        name = label(old.id, old.name)
        if old.is_default:
            text = f"SecurityGroup {name} is the default of project {old.project_id} and stays; its rules may be replaced"
            raise precondition("INCOMPATIBLE_STATE", text)
        users = _ports(transaction, old.id, context) if hold(transaction, keys.members(old.id)) else []
        users += referrers(transaction, old.id, context)
        if users:
            raise in_use(self.kind, old.id, old.name, users)
        hold(transaction, keys.rules(old.id))
        for rule in messages(transaction, "SecurityGroupRule", keys.rules(old.id)):
            if rule.deletion_protection:
                text = f"SecurityGroupRule {label(rule.id, rule.name)} of SecurityGroup {name} is protected; set its"
                raise precondition("DELETION_PROTECTED", f"{text} deletion_protection to false first")
            kernel.remove(transaction, KINDS["SecurityGroupRule"], rule, force, context)
        transaction.delete_prefix(keys.scope(old.id, keys.SECURITY))
        release(transaction, KEY_POOL, old.key)


class AddressGroupRules(Rules):
    """See the module."""

    kind = "AddressGroup"

    def __init__(self) -> None:
        self.changes = {"AddAddresses": _add, "RemoveAddresses": _remove}

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        _number(transaction, new, keys.scope(new.id, keys.ADDRESSES), context)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        if not set(old.addresses) <= set(new.addresses):
            transaction.cut(keys.scope(old.id, keys.ADDRESSES), "addresses")

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        users = referrers(transaction, old.id, context)
        if users:
            raise in_use(self.kind, old.id, old.name, users)
        transaction.delete_prefix(keys.scope(old.id, keys.ADDRESSES))
        release(transaction, KEY_POOL, old.key)


def _number(transaction: Transaction, new: Any, scope: str, context: Context) -> None:
    """Give a group the number that flows know it by; the former one's comes free when the nodes of its scope have let go."""
    key = first_free(transaction, KEY_POOL, *KEYS, context)
    if key is None:
        raise exhausted("NO_FREE_SEGMENT", f"all {KEYS[1]} numbers of groups are in use", pool=KEY_POOL)
    claim_free(transaction, KEY_POOL, key, owner=new.id, project=new.project_id, scope=scope)
    new.key = key


def _ports(transaction: Transaction, group_id: str, context: Context) -> list[str]:
    """The ports that have a group, as messages name them to the caller."""
    found = []
    for key in transaction.folder(keys.members(group_id)):
        port = transaction.object(KINDS["Port"], key.rpartition("/")[2])
        if port is not None:
            seen = context.caller.sees(port.project_id)
            found.append(f"Port {label(port.id, port.name)}" if seen else "a port of another project")
    return sorted(found)


# -- methods beside the standard ones ---------------------------------------------------------------------------------


def _with_addresses(transaction: Transaction, group: Any, addresses: set[str], context: Context) -> Any:
    kind = KINDS["AddressGroup"]
    given = kind.message(id=group.id, addresses=sorted(addresses))
    return kernel.update(transaction, kind, given, ["addresses"], context)


def _add(transaction: Transaction, request: Any, context: Context) -> Any:
    """What the group has already stays."""
    _, group = kernel.find(transaction, KINDS["AddressGroup"], request.id, context)
    return _with_addresses(transaction, group, {*group.addresses, *request.addresses}, context)


def _remove(transaction: Transaction, request: Any, context: Context) -> Any:
    _, group = kernel.find(transaction, KINDS["AddressGroup"], request.id, context)
    return _with_addresses(transaction, group, {*group.addresses} - {*request.addresses}, context)
