"""Rules of security groups, and the templates of those that a new group begins with.

What a rule says is a value that no two rules of a group have: it is claimed, in the folder of the group that it names as its
other side (`keys.rule_pool`). So "who names this group" is one folder too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from controlplane.errors import Violation, reference_not_found, taken
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.base import Context, Rules, claim, hold, label, messages
from controlplane.store import keys
from controlplane.store.txn import Transaction, time_ordered_id
from controlplane.values import Invalid, prefix
from kumihimo.v1 import network_pb2, store_pb2
from kumihimo.v1 import security_pb2 as pb

PARENT = "PARENT"  # of a template's remote_group: the group that gets the rule
WITH_PORTS = ("tcp", "udp", "sctp", "dccp", "udplite")
ICMP = {"icmp": network_pb2.IP_VERSION_IPV4, "icmpv6": network_pb2.IP_VERSION_IPV6}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
RANGE = ("port_range_min", "port_range_max")
# What a rule takes from its template as it is.
_COPIED = {"name", "description", "tags", "direction", "ethertype", "protocol", "remote_ip_prefix"} | set(RANGE)
_TEMPLATES = keys.place(KINDS["DefaultSecurityGroupRule"], "")


def referent(rule: Any) -> str:
    """The group that a rule names as its other side; "" when it names none."""
    return str(rule.remote_group_id or rule.remote_address_group_id)


def normalized_cidr(rule: Any) -> str:
    """The other side of a rule as a prefix; "" when it is a group."""
    return "" if referent(rule) else rule.remote_ip_prefix or EVERYTHING[rule.ethertype]


def saying(rule: Any) -> str:
    """What a rule says, but for the group that it names: equal for two that let the same through."""
    low, high = (getattr(rule, name) if rule.HasField(name) else "" for name in RANGE)
    remote = normalized_cidr(rule).replace("/", "_")
    direction = pb.Direction.Name(rule.direction).removeprefix("DIRECTION_").lower()
    return f"{direction}-{rule.ethertype}-{rule.protocol}-{low}-{high}-{remote}"


def claimed(rule: Any) -> tuple[str, str]:
    """(pool, value) of what a rule says."""
    group = rule.security_group_id
    return keys.rule_pool(referent(rule) or group), f"{group}:{saying(rule)}"


def referrers(transaction: Transaction, group_id: str, context: Context) -> list[str]:
    """The rules of other groups that name a group, as messages name them to the caller; until the commit none is added."""
    pool = keys.claim(keys.rule_pool(group_id))
    found = []
    for key, entry in hold(transaction, pool).items():
        own = key[len(pool) :].partition(":")[0] == group_id
        if own:
            continue
        rule = transaction.object(KINDS["SecurityGroupRule"], store_pb2.Claim.FromString(entry.value).owner)
        if rule is not None:
            seen = context.caller.sees(rule.project_id)
            found.append(f"SecurityGroupRule {label(rule.id, rule.name)}" if seen else "a rule of another project")
    return sorted(found)


def begin(transaction: Transaction, group: Any, context: Context) -> None:
    """Make the rules that a new group begins with: of the templates, or of those that are shipped."""
    kind = KINDS["SecurityGroupRule"]
    hold(transaction, _TEMPLATES)
    field = "used_in_default_group" if group.is_default else "used_in_other_groups"
    said: set[str] = set()
    for template in messages(transaction, "DefaultSecurityGroupRule", _TEMPLATES) or shipped():
        if not getattr(template, field):
            continue
        said_by = {item.name: value for item, value in template.ListFields() if item.name in _COPIED}
        new = kind.message(id=time_ordered_id(), project_id=group.project_id, security_group_id=group.id, **said_by)
        new.remote_group_id = group.id if template.remote_group else ""
        if claimed(new)[1] in said:
            continue
        said.add(claimed(new)[1])
        draft = kernel.Draft(new, new, [], context.defaults)
        kernel.create(transaction, kind, draft, context, counted=not group.is_default)


def shipped() -> list[pb.DefaultSecurityGroupRule]:
    """The templates of an installation that has none: send anything; a default group receives from itself."""
    found = []
    for ethertype in (network_pb2.IP_VERSION_IPV4, network_pb2.IP_VERSION_IPV6):
        send = pb.DefaultSecurityGroupRule(direction=pb.DIRECTION_EGRESS, ethertype=ethertype, used_in_other_groups=True)
        receive = pb.DefaultSecurityGroupRule(direction=pb.DIRECTION_INGRESS, ethertype=ethertype, remote_group=PARENT)
        for template in (send, receive):
            template.used_in_default_group = True
            found.append(template)
    return found


def has_expired(rule: Any) -> bool:
    """Whether the end of a rule that has one has come."""
    return (rule.expire_time.seconds, rule.expire_time.nanos) <= divmod(time.time_ns(), 1_000_000_000)


def complete(new: Any) -> None:
    """The family of a rule or template follows from its prefix, else it is IPv4."""
    if not new.ethertype:
        try:
            new.ethertype = prefix(new.remote_ip_prefix).version if new.remote_ip_prefix else network_pb2.IP_VERSION_IPV4
        except Invalid:
            new.ethertype = network_pb2.IP_VERSION_IPV4  # the descriptor's rules have said so


def faults(new: Any, remotes: tuple[str, ...]) -> Iterator[Violation]:
    """Faults of a rule or template. remotes: the fields of its other side, of which one may be set."""
    stated = [name for name in remotes if getattr(new, name)]
    if len(stated) > 1:
        text = f"{' and '.join(stated)} exclude each other; give one of them"
        yield Violation(stated[1], "FIELDS_EXCLUSIVE", text)
    family = f"IPv{new.ethertype}"
    try:
        if new.remote_ip_prefix and prefix(new.remote_ip_prefix).version != new.ethertype:
            text = f"remote_ip_prefix {new.remote_ip_prefix} is not of the rule's ethertype, which is {family}"
            yield Violation("remote_ip_prefix", "IP_FAMILY_MISMATCH", f"{text}; a prefix of it is accepted")
    except Invalid:
        pass  # the descriptor's rules have said so
    wanted = ICMP.get(new.protocol)
    if wanted and new.ethertype in EVERYTHING and wanted != new.ethertype:
        text = f"protocol {new.protocol} is of IPv{wanted} and the rule's ethertype {family}; ethertype IPV{wanted} is accepted"
        yield Violation("protocol", "IP_FAMILY_MISMATCH", text)
    yield from _range_faults(new)


def _range_faults(new: Any) -> Iterator[Violation]:
    """port_range_min and port_range_max: ports, or type and code of ICMP."""
    low, high = (getattr(new, name) if new.HasField(name) else None for name in RANGE)
    if low is None and high is None:
        return
    if new.protocol in ICMP:
        if low is None:
            text = "port_range_min is missing; the code of ICMP, port_range_max, goes with a type"
            yield Violation("port_range_min", "MISSING_FIELD", text)
        for name, what, number in (("port_range_min", "type", low), ("port_range_max", "code", high)):
            if number is not None and not 0 <= number <= 255:
                text = f"{name} is {number}; for {new.protocol} it is the {what}, and 0 to 255 is accepted"
                yield Violation(name, "PORT_RANGE_INVALID", text)
        return
    if new.protocol not in WITH_PORTS:
        name = "port_range_min" if low is not None else "port_range_max"
        what = f"protocol {new.protocol} has" if new.protocol else "a rule of any protocol has"
        text = f"{name}: {what} no ports; leave it out, or give one of {', '.join(WITH_PORTS)}, {', '.join(ICMP)}"
        yield Violation(name, "PORT_RANGE_INVALID", text)
        return
    for name, number in (("port_range_min", low), ("port_range_max", high)):
        if number is None:
            yield Violation(name, "MISSING_FIELD", f"{name} is missing; a range of ports has both ends")
        elif not 1 <= number <= 65535:
            text = f"{name} is {number}; 1 to 65535 is accepted for {new.protocol}"
            yield Violation(name, "PORT_RANGE_INVALID", text)
    if low is not None and high is not None and low > high:
        text = f"port_range_min is {low}; at most port_range_max, which is {high}, is accepted"
        yield Violation("port_range_min", "PORT_RANGE_INVALID", text)


class SecurityGroupRuleRules(Rules):
    """See the module."""

    kind = "SecurityGroupRule"

    def complete(self, new: Any, context: Context) -> None:
        complete(new)

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        stated = new.HasField("expire_time") and (old is None or new.expire_time != old.expire_time)
        if stated and has_expired(new):
            yield Violation("expire_time", "TIME_IN_PAST", "expire_time has passed; a time in the future is accepted")
        if old is None:  # nothing else changes
            yield from faults(new, ("remote_ip_prefix", "remote_group_id", "remote_address_group_id"))

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        group = transaction.object(KINDS["SecurityGroup"], new.security_group_id)
        if group is None:
            raise reference_not_found("security_group_id", "SecurityGroup", new.security_group_id)
        new.project_id = group.project_id
        holder = claim(transaction, *claimed(new), owner=new.id, project=new.project_id)
        if holder is not None:
            other = transaction.object(KINDS[self.kind], holder.owner)
            name = label(holder.owner, other.name if other is not None else "")
            text = f"SecurityGroup {label(group.id, group.name)} has an equal rule, SecurityGroupRule {name}"
            raise taken("RULE_EXISTS", f"{text}; no second one is needed", name)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        transaction.delete(keys.claim(*claimed(old)))
        transaction.cut(keys.scope(old.security_group_id, keys.SECURITY), f"rule {old.id}")


class DefaultSecurityGroupRuleRules(Rules):
    """See the module."""

    kind = "DefaultSecurityGroupRule"

    def complete(self, new: Any, context: Context) -> None:
        complete(new)

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if old is not None:
            return
        if new.remote_group not in ("", PARENT):
            text = f"remote_group: {PARENT}, which is the group that gets the rule, is all that is accepted"
            yield Violation("remote_group", "STRING_INVALID", text)
        if not new.used_in_default_group and not new.used_in_other_groups:
            text = "used_in_default_group and used_in_other_groups are false, so no group would get it; set one of them"
            yield Violation("used_in_default_group", "MISSING_FIELD", text)
        yield from faults(new, ("remote_ip_prefix", "remote_group"))
