"""The key layout. Everything stands below /kumihimo/; nobody else writes or takes apart a key.

    net/{net}/network            the network              net/{net}/subnet/{id}   net/{net}/port/{id}
    net/{net}/bind/{port}        where a port is (binder)
    net/{net}/place/{port}       where a port shall be (Ports.Bind); none: wherever it is plugged
    net/{net}/change             who changed the network last; rewritten by every transaction that changes the scope, so
                                 its mod revision is the revision of the scope, deletions included
    {scope}/{id}/…               likewise of every other kind with a scope: the object, its children, `change`
    secgroup/{id}/member/{port}  a port that has the security group: the addresses it sends from
    {scope}/{id}/cut             of security groups and address groups: rewritten when something is taken away from them, so its
                                 mod revision tells connections of before from those of since
    node/{id}                    a node                   node/.change            the same for all nodes
    {noun}/{id}                  every other resource
    status/{node}/agent          what an agent says of itself
    status/{node}/port/{port}    a port seen on br-int there
    status/{node}/net/{net}      revision of the network up to which that node's data plane is complete; other scopes likewise
    status/{node}/nodes          the same for the node scope
    status/{node}/drift          what it found changed by others, and what is foreign on it
    status/{node}/counters       traffic and drops of all its ports
    status/{node}/rules          what security group rules have let through there
    alive/{node}                 leased
    index/{kind}/{id}            the parent of an object, and its quota slot
    index/bind/{node}/{port}     ports bound to a node
    claim/{pool}/{value}         a unique value in use; pools: vxlan, vlan/{physical network}, flat, network-key, node-key,
                                 tunnel-ip, net/{net}/mac, net/{net}/ip/{subnet}, net/{net}/dns, quota/{project}/{plural},
                                 prefix/{subnet pool}, scope/{address scope}, default-subnet-pool, group-key,
                                 rule/{group that a rule names, else its own} (value: {its own}:{what it says})
    request/{actor}/{project}/{id}   first result of a named request, leased for 24 h
    forming/{subnet}             ports of its network that were there before it are yet to get their address of it
    apply/{project}              rewritten by each apply that makes objects by name: it knows that no other has
    change/{object}/{id}         one change of an object, leased for 90 days; id is a version 7 uuid, in order of time
    controller/{name}            leased: the API replica that runs a controller
    meta/format                  version of this layout
    meta/cluster                 the etcd cluster that the control plane works on
    meta/restored                leased: the store was restored from a backup just now
    meta/compaction              which revisions are how old

A key's last element never holds "/"; a *folder* is a key less its last element, and ends with "/". A *scope* is what the
nodes that use one object must know; it is known by its prefix, `/kumihimo/net/{net}/`. "" stands for the scope of all nodes.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from controlplane.registry import KINDS, Kind

ROOT = "/kumihimo/"
NETWORKS = ROOT + "net/"
NODES = ROOT + "node/"
NODES_CHANGE = NODES + ".change"
STATUS = ROOT + "status/"
ALIVE = ROOT + "alive/"
CLAIMS = ROOT + "claim/"
REQUESTS = ROOT + "request/"
CHANGES = ROOT + "change/"
FORMAT = ROOT + "meta/format"
CLUSTER = ROOT + "meta/cluster"
RESTORED = ROOT + "meta/restored"
COMPACTION = ROOT + "meta/compaction"
FORMAT_VERSION = 1
INSTALLATION = "installation"
SETTINGS = f"{ROOT}settings/{INSTALLATION}"

# Folders of scopes, beside that of networks.
SECURITY, ADDRESSES = KINDS["SecurityGroup"].scope, KINDS["AddressGroup"].scope

_SCOPED = {kind.scope: kind for kind in KINDS.values() if kind.scope}
SCOPES = tuple(f"{ROOT}{folder}/" for folder in _SCOPED)
_BY_NOUN = {kind.noun: kind for kind in KINDS.values()}


@lru_cache(4096)
def _quoted(text: str) -> str:
    """A text of users as an element of a key."""
    return quote(text, safe="")


def scope(object_id: str, folder: str = "net") -> str:
    """The scope of one object, a network where nothing else is said: the prefix of all that its nodes must know."""
    return f"{ROOT}{folder}/{object_id}/"


def scope_of(key: str) -> str:
    """The scope that a key lies in; "" when it lies in none."""
    if not key.startswith(SCOPES):
        return ""
    object_id, _, leaf = key[key.index("/", len(ROOT)) + 1 :].partition("/")
    return key[: len(key) - len(leaf)] if object_id and leaf else ""


def is_scope(prefix: str) -> bool:
    """Whether a prefix is that of a scope."""
    return prefix.startswith(SCOPES)


def head(scope: str) -> str:
    """The key of the object that a scope is that of."""
    folder, object_id, _ = split(scope)
    return place(_SCOPED[folder], object_id)


def network(network_id: str) -> str:
    return f"{NETWORKS}{network_id}/network"


def place(kind: Kind, object_id: str, parent_id: str = "") -> str:
    """Where an object stands. parent_id: for kinds that have a parent."""
    if kind.parent:
        return f"{ROOT}{kind.folder}/{parent_id}/{kind.noun}/{object_id}"
    if kind.scope:
        return f"{ROOT}{kind.scope}/{object_id}/{kind.noun}"
    return f"{ROOT}{kind.noun}/{object_id}"


def names_object(object_id: str) -> bool:
    """Whether an id can be that of an object: it must not spell its way to another key (node/.change)."""
    return bool(object_id) and "/" not in object_id and object_id[0] != "."


@lru_cache(64)
def resource(key: str) -> tuple[Kind, str] | None:
    """(kind, id) of a key that holds a resource."""
    match split(key):
        case [folder, object_id, noun] if folder in _SCOPED and _SCOPED[folder].noun == noun:
            return _SCOPED[folder], object_id
        case [folder, _, noun, object_id] if noun in _BY_NOUN and _BY_NOUN[noun].parent and _BY_NOUN[noun].folder == folder:
            return _BY_NOUN[noun], object_id
        case [noun, object_id] if noun in _BY_NOUN and not object_id.startswith("."):
            kind = _BY_NOUN[noun]
            return None if kind.parent or kind.scope else (kind, object_id)
    return None


def subnets(network_id: str) -> str:
    return f"{NETWORKS}{network_id}/subnet/"


def ports(network_id: str) -> str:
    return f"{NETWORKS}{network_id}/port/"


def bindings(network_id: str) -> str:
    return f"{NETWORKS}{network_id}/bind/"


def placements(network_id: str) -> str:
    return f"{NETWORKS}{network_id}/place/"


def change_of(scope: str) -> str:
    """Who changed a scope last; its mod revision is the scope's."""
    return f"{scope}change" if scope else NODES_CHANGE


def node(node_id: str) -> str:
    return NODES + node_id


def status(node_id: str) -> str:
    """Prefix of all that one node says."""
    return f"{STATUS}{node_id}/"


def agent_status(node_id: str) -> str:
    return f"{STATUS}{node_id}/agent"


def port_status(node_id: str, port_id: str = "") -> str:
    return f"{STATUS}{node_id}/port/{port_id}"


def scope_status(node_id: str, scope: str) -> str:
    """How far a node has applied a scope."""
    return f"{STATUS}{node_id}/{scope.removeprefix(ROOT).rstrip('/') or 'nodes'}"


def scope_of_status(key: str) -> str:
    """The scope that a node says in this key how far it has applied; "" when it says something else."""
    match split(key):
        case ["status", _, folder, object_id] if folder in _SCOPED:
            return scope(object_id, folder)
    return ""


def members(group_id: str) -> str:
    """The ports that have a security group."""
    return f"{scope(group_id, SECURITY)}member/"


def rules(group_id: str) -> str:
    """The rules of a security group."""
    return f"{scope(group_id, SECURITY)}security_group_rule/"


def cut_of(scope: str) -> str:
    """What is rewritten when something is taken away from a group of addresses or rules, known by its scope."""
    return f"{scope}cut"


def drift_status(node_id: str) -> str:
    return f"{STATUS}{node_id}/drift"


def counters(node_id: str) -> str:
    return f"{STATUS}{node_id}/counters"


def rule_counters(node_id: str) -> str:
    return f"{STATUS}{node_id}/rules"


def alive(node_id: str) -> str:
    return ALIVE + node_id


def index(kind: str, object_id: str = "") -> str:
    return f"{ROOT}index/{kind.lower()}/{object_id}"


def bound_to(node_id: str, port_id: str = "") -> str:
    return f"{ROOT}index/bind/{node_id}/{port_id}"


def claim(pool: str, value: object = "") -> str:
    return f"{CLAIMS}{pool}/{value}"


def mac_pool(network_id: str) -> str:
    return f"net/{network_id}/mac"


def dns_pool(network_id: str) -> str:
    """The dns_names of a network's ports."""
    return f"net/{network_id}/dns"


def ip_pool(network_id: str, subnet_id: str) -> str:
    return f"net/{network_id}/ip/{subnet_id}"


@lru_cache(1024)
def quota_pool(project_id: str, kind: Kind) -> str:
    """The claims that count a project's objects of a kind: a slot each."""
    return f"quota/{_quoted(project_id)}/{kind.options.plural}"


def prefix_pool(pool_id: str) -> str:
    """The prefixes that subnets have of a subnet pool."""
    return f"prefix/{pool_id}"


def scope_pool(scope_id: str) -> str:
    """The prefixes that subnet pools have in an address scope."""
    return f"scope/{scope_id}"


def rule_pool(group_id: str) -> str:
    """The rules that name a group as their other side, and those of a security group that name none."""
    return f"rule/{group_id}"


def request(actor: str, project_id: str, request_id: str) -> str:
    return f"{REQUESTS}{_quoted(actor)}/{_quoted(project_id)}/{quote(request_id, safe='')}"


def apply(project_id: str) -> str:
    return f"{ROOT}apply/{_quoted(project_id)}"


def forming(subnet_id: str) -> str:
    """The note that ports are yet to get their address of a subnet; its value names the network."""
    return f"{ROOT}forming/{subnet_id}"


def change(object_id: str, change_id: str = "") -> str:
    return f"{CHANGES}{object_id}/{change_id}"


def controller(name: str) -> str:
    return f"{ROOT}controller/{name}"


@lru_cache(64)  # all who hear of a change ask it of the same key
def split(key: str) -> tuple[str, ...]:
    """The elements of a key below the root: ("net", NET, "port", PORT)."""
    return tuple(key.removeprefix(ROOT).split("/"))


def folder(key: str) -> str:
    return key[: key.rindex("/") + 1]


def end_of(prefix: str) -> bytes:
    """The first key after every key with this prefix (etcd's range_end)."""
    raw = prefix.encode().rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"
