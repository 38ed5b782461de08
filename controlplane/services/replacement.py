"""`SecurityGroups.ReplaceRules`: a group has other rules from one moment to the next. One entry of its history tells it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.errors import Violation, fault, precondition, refuse
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.base import Context, hold, label, messages
from controlplane.services.rule import claimed
from controlplane.store import keys
from controlplane.store.commit import LARGEST_TRANSACTION
from controlplane.store.txn import Transaction, time_ordered_id
from kumihimo.v1 import security_pb2 as pb

GROUP, RULE = "SecurityGroup", "SecurityGroupRule"
AROUND = 5  # operations: the group, its scope's change and cut, the history, the request's record
# What the history of a group need not tell of its rules.
_KNOWN = ("project_id", "create_time", "update_time", "creator", "last_modifier", "security_group_id")
# What may differ between two rules that say the same.
_TEXTS = ("name", "description", "tags", "expire_time")


def take_group(request: Any) -> None:
    """Rules that name no group are of that of the request."""
    for rule in request.rules:
        rule.security_group_id = rule.security_group_id or request.id


@dataclass(slots=True)
class _Plan:
    """What becomes of the rules. stay: as they are to be, of those asked for. edited: (before, after) of some of them."""

    stay: list[Any] = field(default_factory=list)
    edited: list[tuple[Any, Any]] = field(default_factory=list)
    drafts: list[kernel.Draft] = field(default_factory=list)
    gone: list[Any] = field(default_factory=list)


def replace_rules(transaction: Transaction, request: Any, context: Context) -> Any:
    """The group, with its rules."""
    kind = KINDS[GROUP]
    key, stored = kernel.find(transaction, kind, request.id, context)
    kernel.check_etag(kind, stored, request.etag)
    hold(transaction, keys.rules(stored.id))
    plan = _plan(transaction, stored, request, context)
    reply = kernel.copy(stored)
    made: list[Any] = []
    if plan.gone or plan.drafts or plan.edited:
        _refuse_too_many(plan)
        made = _carry_out(transaction, plan, context)
        entry = transaction.get(key)
        before = kind.new(entry.value if entry else b"")
        kernel.store(transaction, kind, reply)
        after = kernel.copy(reply)
        _show(before, [*plan.gone, *(old for old, _ in plan.edited)])
        _show(after, [*made, *(new for _, new in plan.edited)])
        told = {"before": before.SerializeToString(), "after": after.SerializeToString()}
        transaction.record(kind.name, stored.id, project=stored.project_id, name=stored.name, **told)
    reply.rules.extend([*plan.stay, *made])
    return reply


def _refuse_too_many(plan: _Plan) -> None:
    """Before the work is done: a rule is four keys, and one that takes another's place needs no other quota slot."""
    new, gone = len(plan.drafts), len(plan.gone)
    operations = 4 * (new + gone) - min(new, gone) + len(plan.edited) + AROUND
    if operations > LARGEST_TRANSACTION:
        text = f"rules: {new} new ones in the place of {gone} take {operations} operations of the store"
        raise fault("rules", "TOO_MANY_VALUES", f"{text}; {LARGEST_TRANSACTION} fit into one call: replace them in parts")


def _show(group: Any, rules: list[Any]) -> None:
    for rule in rules:
        bare = group.rules.add()
        bare.CopyFrom(rule)
        kernel.strip(bare)
        for name in _KNOWN:
            bare.ClearField(name)


def _carry_out(transaction: Transaction, plan: _Plan, context: Context) -> list[Any]:
    """Write what is planned; the new rules."""
    kind = KINDS[RULE]
    for _, new in plan.edited:
        kernel.store(transaction, kind, new)
    return kernel.exchange(transaction, kind, plan.gone, plan.drafts, context)


def _plan(transaction: Transaction, group: Any, request: Any, context: Context) -> _Plan:
    """Raises what is wrong with the request, every fault with its place."""
    there = {claimed(rule): rule for rule in messages(transaction, RULE, keys.rules(group.id))}
    ids = {rule.id for rule in there.values()}
    plan, found, seen = _Plan(), list[Violation](), dict[tuple[str, str], int]()
    for number, given in enumerate(request.rules):
        place = f"rules[{number}]"
        draft = kernel.prepare(KINDS[RULE], given, context)
        found += [replace(item, field=f"{place}.{item.field}", message=f"{place}: {item.message}") for item in draft.faults]
        if draft.faults:
            continue
        if draft.new.security_group_id != group.id:
            text = f"{place}.security_group_id names another group; leave it out"
            found.append(Violation(f"{place}.security_group_id", "VALUE_OUT_OF_RANGE", text))
            continue
        says = claimed(draft.new)
        twin = seen.setdefault(says, number)
        if twin != number:
            found.append(Violation(place, "DUPLICATE_VALUE", f"{place} is equal to rules[{twin}]; state it once"))
        elif says in there:
            _keep(transaction, plan, there.pop(says), draft.new)
        else:
            # One that was changed on its way here is another rule.
            draft.new.id = time_ordered_id() if draft.new.id in ids else draft.new.id
            plan.drafts.append(draft)
    refuse(found)
    for rule in there.values():
        if rule.deletion_protection:
            text = (
                f"SecurityGroupRule {label(rule.id, rule.name)} is protected; state it too, or set its deletion_protection to"
            )
            raise precondition("DELETION_PROTECTED", f"{text} false first")
        transaction.read(_key(rule))
        plan.gone.append(rule)
    return plan


def _keep(transaction: Transaction, plan: _Plan, old: Any, given: pb.SecurityGroupRule) -> None:
    """A rule that says what one of the request does stays, with the texts of that."""
    new = kernel.copy(old)
    for name in _TEXTS:
        new.ClearField(name)
    new.MergeFrom(pb.SecurityGroupRule(**{name: getattr(given, name) for name in _TEXTS if _is_set(given, name)}))
    if new == old:
        transaction.require(_key(old))
    else:
        transaction.read(_key(old))
        plan.edited.append((old, new))
    plan.stay.append(new)


def _is_set(rule: Any, name: str) -> bool:
    return bool(rule.HasField(name) if name == "expire_time" else getattr(rule, name))


def _key(rule: Any) -> str:
    return keys.place(KINDS[RULE], rule.id, rule.security_group_id)
