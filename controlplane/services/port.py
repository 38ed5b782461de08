"""Ports: MAC and addresses, chosen or given, claimed in the port's own transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane import dhcpoptions, names
from controlplane.errors import ApiError, Code, Violation, exhausted, fault, precondition, reference_not_found, taken
from controlplane.registry import KINDS
from controlplane.services import kernel, membership
from controlplane.services.base import Context, Rules, claim, claim_free, label, network_of, release, subnets_of
from controlplane.services.subnet import forms_addresses, ranges, usable
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.txn import Transaction
from controlplane.values import Invalid, address, eui64, prefix
from kumihimo.v1 import port_pb2 as pb
from kumihimo.v1 import store_pb2

MAC_TRIES = 100


class PortRules(Rules):
    """See the module."""

    kind = "Port"

    def __init__(self) -> None:
        self.changes = {"Bind": _bind, "Unbind": _unbind}

    def complete(self, new: Any, context: Context) -> None:
        if not new.HasField("admin_state_up"):
            new.admin_state_up = True
        new.vnic_type = new.vnic_type or pb.VNIC_TYPE_NORMAL

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.no_fixed_ips and new.fixed_ips:
            yield Violation("no_fixed_ips", "FIELDS_EXCLUSIVE", "no_fixed_ips and fixed_ips exclude each other")
        owner_changed = old is None or new.device_owner != old.device_owner
        if owner_changed and membership.is_of_service(new) and not context.caller.is_operator:
            yield Violation(
                "device_owner",
                "FIELD_FORBIDDEN",
                f"device_owner {new.device_owner!r}: values that begin with network: are for services and operators",
                Code.PERMISSION_DENIED,
            )
        if new.vnic_type in pb.VnicType.values() and new.vnic_type != pb.VNIC_TYPE_NORMAL:
            yield Violation(
                "vnic_type",
                "FEATURE_NOT_SUPPORTED",
                f"no node supports vnic_type {pb.VnicType.Name(new.vnic_type)}; NORMAL is accepted",
                Code.UNIMPLEMENTED,
            )
        yield from _check_options(new)
        if names.is_default(new.dns_name):
            yield Violation(
                "dns_name",
                "STRING_INVALID",
                f"dns_name {new.dns_name} has the form of a name that follows from an address; leave it out, or take another",
            )
        for number, pair in enumerate(new.allowed_address_pairs):
            yield from self._check_pair(f"allowed_address_pairs[{number}]", pair, new.mac_address)
        off = new.HasField("port_security_enabled") and not new.port_security_enabled
        for field, wrong in (
            ("allowed_address_pairs", off and new.allowed_address_pairs),
            ("security_group_ids", off and membership.are_chosen(new, old)),
        ):
            if wrong:
                text = f"{field} has no effect with port_security_enabled false; leave it empty"
                yield Violation(field, "INCOMPATIBLE_STATE", text, Code.FAILED_PRECONDITION)

    def _check_pair(self, place: str, pair: Any, mac: str) -> Iterator[Violation]:
        try:
            network = prefix(pair.ip_address)
        except ValueError:
            return  # the descriptor's rules have said so
        if network.is_multicast:
            yield Violation(place, "CIDR_INVALID", f"{place}: {network} is multicast; nobody sends from it")
        if network.prefixlen == 0 and pair.mac_address and pair.mac_address != mac:
            yield Violation(
                place,
                "CIDR_INVALID",
                f"{place}: {network} with another MAC allows everything; set port_security_enabled false",
            )

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        network = network_of(transaction, new.network_id)
        new.project_id = network.project_id
        self._default_security(new, network)
        if new.mac_address:
            self._claim_mac(transaction, new)
        else:
            new.mac_address = self._make_mac(transaction, new, context)
        subnets = subnets_of(transaction, new.network_id)
        if not new.fixed_ips and not new.no_fixed_ips and "fixed_ips" not in context.stated:
            self._default_addresses(transaction, new, subnets)
        self._claim_addresses(transaction, new, subnets, {}, context)
        _claim_name(transaction, new, "")
        membership.settle(transaction, new, None, context)

    def _default_security(self, new: Any, network: Any) -> None:
        """Unset is the network's value, never "off"."""
        if new.HasField("port_security_enabled"):
            return
        new.port_security_enabled = network.port_security_enabled
        for field in ("allowed_address_pairs", "security_group_ids"):
            if not new.port_security_enabled and getattr(new, field):
                raise precondition(
                    "INCOMPATIBLE_STATE",
                    f"{field} has no effect: Network {label(network.id, network.name)} has port_security_enabled"
                    " false; leave it empty, or set port_security_enabled true",
                )

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        self._default_security(new, network_of(transaction, new.network_id))
        if not new.mac_address:
            new.mac_address = old.mac_address
        if new.mac_address != old.mac_address:
            bound = transaction.read(keys.bindings(new.network_id) + new.id)
            if bound is not None:
                raise precondition(
                    "PORT_IN_USE",
                    f"Port {label(old.id, old.name)} is attached; its mac_address changes only while it is not",
                )
            self._claim_mac(transaction, new)
            release(transaction, keys.mac_pool(old.network_id), old.mac_address)
        held = {fixed.ip_address: fixed.subnet_id for fixed in old.fixed_ips}
        self._keep_addresses(new, held)
        subnets = subnets_of(transaction, new.network_id)
        formed = {subnet.id: eui64(prefix(subnet.cidr), old.mac_address) for subnet in subnets if forms_addresses(subnet)}
        if new.mac_address != old.mac_address:
            _follow_mac(new, formed)
        self._claim_addresses(transaction, new, subnets, held, context)
        if context.applied:
            _keep_formed(new, formed, held)
        else:
            _refuse_lost(new, formed, held)
        kept = {fixed.ip_address for fixed in new.fixed_ips}
        for ip, subnet_id in held.items():
            if ip not in kept:
                release(transaction, keys.ip_pool(old.network_id, subnet_id), ip)
        _claim_name(transaction, new, old.dns_name)
        membership.settle(transaction, new, old, context)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        if membership.is_of_service(old) and not context.caller.is_operator:
            raise precondition(
                "OWNED_BY_SERVICE",
                f"Port {label(old.id, old.name)} is owned by {old.device_owner} {old.device_id}".rstrip()
                + "; delete what owns it, or ask an operator",
                owner=old.device_owner,
            )
        key = keys.bindings(old.network_id) + old.id
        bound = transaction.read(key)
        if bound is not None:
            binding = pb.Binding.FromString(bound.value)
            if not force:
                raise precondition(
                    "PORT_IN_USE", f"Port {label(old.id, old.name)} is attached; detach it first, or delete with force"
                )
            transaction.delete(key)
            transaction.delete(keys.bound_to(binding.node, old.id))
        place = keys.placements(old.network_id) + old.id
        if transaction.read(place) is not None:
            transaction.delete(place)
        release(transaction, keys.mac_pool(old.network_id), old.mac_address)
        for fixed in old.fixed_ips:
            release(transaction, keys.ip_pool(old.network_id, fixed.subnet_id), fixed.ip_address)
        if old.dns_name:
            release(transaction, keys.dns_pool(old.network_id), old.dns_name)
        membership.leave(transaction, old, set(old.security_group_ids))

    # -- MAC ----------------------------------------------------------------------------------------------------------

    def _claim_mac(self, transaction: Transaction, new: Any) -> None:
        pool = keys.mac_pool(new.network_id)
        owner, project = new.id, new.project_id
        holder = claim(transaction, pool, new.mac_address, owner=owner, project=project, network=new.network_id)
        if holder is not None:
            name = _holder(transaction, holder)
            raise taken("MAC_TAKEN", f"mac_address {new.mac_address} is taken by {name}; leave it out to have one made", name)

    def _make_mac(self, transaction: Transaction, new: Any, context: Context) -> str:
        pool = keys.mac_pool(new.network_id)
        for _ in range(MAC_TRIES):
            low = context.random.randbytes(3).hex(":")
            mac = f"{context.defaults.mac_base}:{low}"
            if not transaction.holds(keys.claim(pool, mac)):
                owner, project = new.id, new.project_id
                claim_free(transaction, pool, mac, owner=owner, project=project, network=new.network_id)
                return mac
        raise exhausted("NO_FREE_ADDRESS", f"no free MAC address of {context.defaults.mac_base} was found in the network")

    # -- addresses ----------------------------------------------------------------------------------------------------

    def _default_addresses(self, transaction: Transaction, new: Any, subnets: list[Any]) -> None:
        """One address per family that has a subnet; the first subnet of the family with room for it.

        Of IPv6 subnets whose guests form addresses, one of each: guests do so whether or not the port has it.
        """
        transaction.require_unchanged(keys.subnets(new.network_id))
        for family in (4, 6):
            of_family = [subnet for subnet in subnets if subnet.ip_version == family]
            formed = [subnet for subnet in of_family if forms_addresses(subnet)]
            for subnet in formed:
                new.fixed_ips.add(subnet_id=subnet.id)
            if formed or not of_family:
                continue
            chosen = of_family[0]
            if len(of_family) > 1:
                chosen = next((subnet for subnet in of_family if _has_room(transaction, subnet)), chosen)
            new.fixed_ips.add(subnet_id=chosen.id)

    def _keep_addresses(self, new: Any, held: dict[str, str]) -> None:
        """An entry that names a subnet only is content with an address of it that the port has already."""
        free = dict(held)
        for fixed in new.fixed_ips:
            free.pop(fixed.ip_address, None)
        for fixed in new.fixed_ips:
            if not fixed.ip_address:
                fixed.ip_address = next((ip for ip, subnet in free.items() if subnet == fixed.subnet_id), "")
                free.pop(fixed.ip_address, None)

    def _claim_addresses(
        self, transaction: Transaction, new: Any, of_network: list[Any], held: dict[str, str], context: Context
    ) -> None:
        """Complete and claim every address; `held` are those the port has already."""
        subnets = {subnet.id: subnet for subnet in of_network}
        # Those that are asked for by address first, or one that is chosen may be the same.
        for number, fixed in sorted(enumerate(new.fixed_ips), key=lambda item: not item[1].ip_address):
            place = f"fixed_ips[{number}]"
            if not fixed.subnet_id and not fixed.ip_address:
                raise fault(place, "MISSING_FIELD", f"{place} needs subnet_id, ip_address or both")
            subnet = self._subnet(place, fixed, subnets, new)
            transaction.require(keys.subnets(new.network_id) + subnet.id)
            fixed.subnet_id = subnet.id
            if forms_addresses(subnet):
                self._form_address(place, fixed, subnet, new)
            if fixed.ip_address in held:
                continue
            if fixed.ip_address:
                self._claim_address(transaction, place, fixed, subnet, new)
            else:
                fixed.ip_address = self._pick_address(transaction, subnet, new, context)

    def _subnet(self, place: str, fixed: Any, subnets: dict[str, Any], new: Any) -> Any:
        if fixed.subnet_id:
            subnet = subnets.get(fixed.subnet_id)
            if subnet is None:
                raise ApiError(
                    Code.NOT_FOUND,
                    "REFERENCE_NOT_FOUND",
                    f"{place}.subnet_id names Subnet {fixed.subnet_id}, which Network {new.network_id} does not have",
                    {"field": f"{place}.subnet_id"},
                )
            candidates = [subnet]
        else:
            candidates = list(subnets.values())
        if not fixed.ip_address:
            return candidates[0]
        wanted = address(fixed.ip_address)
        for subnet in candidates:
            network = prefix(subnet.cidr)
            first, last = usable(network)
            if wanted in network and first <= int(wanted) <= last:
                return subnet
        accepted = ", ".join(subnet.cidr for subnet in candidates) or "none: the network has no subnet"
        raise fault(
            f"{place}.ip_address",
            "IP_NOT_IN_SUBNET",
            f"{place}.ip_address {wanted} is no host's address of the subnets it may come from ({accepted})",
        )

    def _form_address(self, place: str, fixed: Any, subnet: Any, new: Any) -> None:
        """The one address that a guest with the port's MAC makes for itself."""
        formed = eui64(prefix(subnet.cidr), new.mac_address)
        if fixed.ip_address not in ("", formed):
            raise fault(
                f"{place}.ip_address",
                "IP_NOT_IN_SUBNET",
                f"{place}.ip_address {fixed.ip_address}: guests of Subnet {label(subnet.id, subnet.name)} form their address"
                f" from their MAC, {new.mac_address}; {formed} is accepted",
            )
        fixed.ip_address = formed
        if sum(other.ip_address == formed for other in new.fixed_ips) > 1:
            text = f"{place} asks for {formed} a second time; one entry for Subnet {label(subnet.id, subnet.name)} is accepted"
            raise fault(place, "DUPLICATE_VALUE", text)

    def _claim_address(self, transaction: Transaction, place: str, fixed: Any, subnet: Any, new: Any) -> None:
        pool = keys.ip_pool(new.network_id, subnet.id)
        owner, project = new.id, new.project_id
        holder = claim(transaction, pool, fixed.ip_address, owner=owner, project=project, network=new.network_id)
        if holder is not None:
            name = _holder(transaction, holder)
            raise taken("ADDRESS_TAKEN", f"{place}.ip_address {fixed.ip_address} is taken by {name}", name)

    def _pick_address(self, transaction: Transaction, subnet: Any, new: Any, context: Context) -> str:
        pool = keys.ip_pool(new.network_id, subnet.id)
        folder = keys.claim(pool)
        make = type(address(subnet.allocation_pools[0].start)) if subnet.allocation_pools else str
        spans = ranges(subnet)
        hint = context.hints.start(pool, spans[0][0], spans[-1][1]) if spans else 0
        # From the hint to the end, then from the beginning: addresses of the recently deleted come last.
        ordered = [(max(low, hint), high) for low, high in spans if high >= hint]
        ordered += [(low, min(high, hint - 1)) for low, high in spans if low < hint]
        for low, high in ordered:
            for candidate in range(low, high + 1):
                ip = str(make(candidate))
                if not transaction.holds(folder + ip):
                    context.hints.took(pool, candidate)
                    owner, project = new.id, new.project_id
                    claim_free(transaction, pool, ip, owner=owner, project=project, network=new.network_id)
                    return ip
        raise exhausted(
            "NO_FREE_ADDRESS",
            f"Subnet {label(subnet.id, subnet.name)} has no free address left in its pools",
            subnet=subnet.id,
        )


def _follow_mac(new: Any, formed: dict[str, str]) -> None:
    """Have the addresses that were formed from the former MAC formed anew."""
    for fixed in new.fixed_ips:
        if formed.get(fixed.subnet_id) == fixed.ip_address:
            fixed.ip_address = ""


def _left_out(new: Any, formed: dict[str, str], held: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(subnet, address) that guests form and that a port which keeps others shall lose."""
    for ip, subnet_id in held.items():
        if new.fixed_ips and formed.get(subnet_id) == ip and all(fixed.subnet_id != subnet_id for fixed in new.fixed_ips):
            yield subnet_id, ip


def _keep_formed(new: Any, formed: dict[str, str], held: dict[str, str]) -> None:
    """An apply states what was chosen: an address that came with a later subnet stays, and a second apply changes nothing."""
    for subnet_id, ip in list(_left_out(new, formed, held)):
        new.fixed_ips.add(subnet_id=subnet_id, ip_address=ip)


def _refuse_lost(new: Any, formed: dict[str, str], held: dict[str, str]) -> None:
    """Guests go on using an address that they form, so it is not taken from a port that keeps others."""
    for subnet_id, ip in _left_out(new, formed, held):
        raise precondition(
            "INCOMPATIBLE_STATE",
            f"fixed_ips leaves out {ip}, which guests of Subnet {subnet_id} form by themselves; state it as well, or set"
            " no_fixed_ips",
        )


def _bind(transaction: Transaction, request: Any, context: Context) -> Any:
    """Ask for a place. A key of its own, like the binding: where a port is changes nothing that its users have stated."""
    _, port = kernel.find(transaction, KINDS["Port"], request.id, context)
    if transaction.require(keys.node(request.node_id)) is None or not keys.names_object(request.node_id):
        raise reference_not_found("node_id", "Node", request.node_id)
    key = keys.placements(port.network_id) + port.id
    _note_place(transaction, port, transaction.read(key), store_pb2.Placement(node=request.node_id))
    return kernel.copy(port)


def _unbind(transaction: Transaction, request: Any, context: Context) -> Any:
    _, port = kernel.find(transaction, KINDS["Port"], request.id, context)
    _note_place(transaction, port, transaction.read(keys.placements(port.network_id) + port.id), None)
    return kernel.copy(port)


def _note_place(transaction: Transaction, port: Any, old: Entry | None, new: store_pb2.Placement | None) -> None:
    after = new.SerializeToString() if new else b""
    before = old.value if old else b""
    if before == after:
        return
    key = keys.placements(port.network_id) + port.id
    if new is None:
        transaction.delete(key)
    else:
        transaction.put(key, new)
    transaction.record("Placement", port.id, project=port.project_id, name=port.name, before=before, after=after)


def _check_options(new: Any) -> Iterator[Violation]:
    """extra_dhcp_opts: names, values, and no option by its name and by its code."""
    seen: dict[tuple[str, int], str] = {}
    for number, given in enumerate(new.extra_dhcp_opts):
        place = f"extra_dhcp_opts[{number}]"
        family = dhcpoptions.family(given.ip_version)
        try:
            option = family.find(given.name)
        except Invalid as error:
            yield Violation(f"{place}.name", error.reason, f"{place}.name: {error.message}")
            continue
        if twin := seen.get((family.title, option.code)):
            text = f"{place}: {given.name} is option {option.code}, which {twin} is too; give it once"
            yield Violation(f"{place}.name", "DUPLICATE_VALUE", text)
        seen[family.title, option.code] = given.name
        try:
            family.written(given.name, given.value)
        except Invalid as error:
            yield Violation(f"{place}.value", error.reason, f"{place}.value: {error.message}")


def _claim_name(transaction: Transaction, new: Any, old: str) -> None:
    """dns_name is the port's alone in its network, whatever the domain: the short name alone finds it too."""
    if new.dns_name == old:
        return
    pool = keys.dns_pool(new.network_id)
    if new.dns_name:
        owner, project = new.id, new.project_id
        holder = claim(transaction, pool, new.dns_name, owner=owner, project=project, network=new.network_id)
        if holder is not None:
            name = _holder(transaction, holder)
            raise taken("NAME_TAKEN", f"dns_name {new.dns_name} is taken in the network by {name}", name)
    if old:
        release(transaction, pool, old)


def _has_room(transaction: Transaction, subnet: Any) -> bool:
    pool = keys.claim(keys.ip_pool(subnet.network_id, subnet.id))
    return transaction.has_fewer(pool, sum(high - low + 1 for low, high in ranges(subnet)))


def _holder(transaction: Transaction, holder: store_pb2.Claim) -> str:
    port = transaction.object(KINDS["Port"], holder.owner)
    if port is not None:
        return f"Port {label(port.id, port.name)}"
    if holder.releasing:
        return "a port deleted just now; the nodes have not yet let go of it"
    return "the network's DHCP service"
