"""The kinds of resources, derived from the proto descriptors. Nothing about a kind is stated twice.

A message with the option `kumihimo.v1.resource` is a kind; the service named by its plural (`Networks`) holds its
methods. Adding a resource adds a .proto file to `_FILES` and its rules to `controlplane/services`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.message_factory import GetMessageClass

from kumihimo.v1 import (
    network_pb2,
    node_pb2,
    operations_pb2,
    pool_pb2,
    port_pb2,
    quota_pb2,
    resource_pb2,
    security_pb2,
    segment_pb2,
    settings_pb2,
)

# google.protobuf has two classes for each descriptor (upb and pure Python) and the type stubs know only one.
Descriptor = Any
Field = Any
Service = Any

# What others depend on comes first: an Apply makes its objects in this order.
_FILES: tuple[Any, ...] = tuple(
    module.DESCRIPTOR
    for module in (settings_pb2, quota_pb2, segment_pb2, pool_pb2, network_pb2, security_pb2, port_pb2, node_pb2)
)


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of resource.

    name: the message's name ("Network"). service: the gRPC service with its methods. options: nouns, columns, parent.
    noun: its name in keys and on the command line. parent: the field that names the object it lives below, or "".
    parent_kind: that object's kind, or "". scope: the key folder of what belongs to one object of this kind, or "".
    owned: it belongs to a project.
    """

    name: str
    descriptor: Descriptor
    service: Service
    options: resource_pb2.ResourceOptions
    message: type[Any]
    noun: str
    parent: str
    parent_kind: str
    scope: str
    owned: bool
    indexed: bool

    def request(self, method: str) -> type[Any]:
        """The request message of a method of its service, for example "Create"."""
        return GetMessageClass(self.service.methods_by_name[method].input_type)

    def reply(self, method: str) -> type[Any]:
        """The reply message of a method of its service."""
        return GetMessageClass(self.service.methods_by_name[method].output_type)

    def new(self, data: bytes = b"") -> Any:
        """A message of this kind, parsed from stored bytes (unknown fields are kept)."""
        return self.message.FromString(data)

    def parent_of(self, message: Any) -> str:
        """Id of the object that one of this kind lives below; "" where there is none."""
        return str(getattr(message, self.parent)) if self.parent else ""

    @property
    def folder(self) -> str:
        """The key folder of the scopes that objects of this kind lie in; "" when they lie in none."""
        return KINDS[self.parent_kind].scope if self.parent_kind else self.scope


# Asking a descriptor for its options costs more than checking the value: they are read once for each field.
@cache
def rules(field: Field) -> resource_pb2.FieldRules:
    """The rules of a field; empty when it has none."""
    return field.GetOptions().Extensions[resource_pb2.rules]  # type: ignore[no-any-return]


@cache
def behaviors(field: Field) -> frozenset[int]:
    """The values of google.api.field_behavior that a field has."""
    return frozenset(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])


def _kinds() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for file in _FILES:
        for name, descriptor in file.message_types_by_name.items():
            options = descriptor.GetOptions()
            if options.HasExtension(resource_pb2.resource):
                resource = options.Extensions[resource_pb2.resource]
                found[name] = _kind(descriptor, file, resource)
    return found


def _kind(descriptor: Descriptor, file: Any, options: resource_pb2.ResourceOptions) -> Kind:
    service = "".join(word.capitalize() for word in options.plural.split("_"))
    return Kind(
        name=descriptor.name,
        descriptor=descriptor,
        service=file.services_by_name[service],
        options=options,
        message=GetMessageClass(descriptor),
        noun=options.singular,
        parent=options.parent,
        parent_kind=rules(descriptor.fields_by_name[options.parent]).reference if options.parent else "",
        scope=options.scope,
        owned=not (options.operator_named or options.unowned),
        indexed=bool(options.parent or options.quota),
    )


KINDS: dict[str, Kind] = _kinds()
OPERATIONS: Service = operations_pb2.DESCRIPTOR.services_by_name["Operations"]
