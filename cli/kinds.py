"""The kinds of resources as the command line sees them: nouns, fields, options. All comes from the descriptors."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import kumihimo.v1
from kumihimo.v1 import resource_pb2

PACKAGE = "kumihimo.v1"


def rules(field: FieldDescriptor) -> resource_pb2.FieldRules:
    """The field's rules; empty where it has none."""
    extensions: Any = field.GetOptions().Extensions
    found: resource_pb2.FieldRules = extensions[resource_pb2.rules]
    return found


def _behaves(field: FieldDescriptor, behavior: int) -> bool:
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def writable(field: FieldDescriptor) -> bool:
    """Whether a client may set the field at all."""
    return not _behaves(field, field_behavior_pb2.OUTPUT_ONLY)


def immutable(field: FieldDescriptor) -> bool:
    """Whether the field stays as it was created."""
    return _behaves(field, field_behavior_pb2.IMMUTABLE)


def required(field: FieldDescriptor) -> bool:
    """Whether an object cannot be created without it."""
    return _behaves(field, field_behavior_pb2.REQUIRED)


def option_name(field: FieldDescriptor) -> str:
    """The name of the field's option, without the dashes before it."""
    return rules(field).option or field.name.replace("_", "-")


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of resource. name: the message's ("Network"). noun: the command's ("network")."""

    name: str
    descriptor: Descriptor
    options: resource_pb2.ResourceOptions
    service: ServiceDescriptor

    @property
    def noun(self) -> str:
        return self.options.singular.replace("_", "-")

    @property
    def plural(self) -> str:
        return self.options.plural.replace("_", " ")

    @property
    def settable(self) -> list[FieldDescriptor]:
        """The fields of Create's options. An etag guards what exists, so it is an option of update and delete."""
        return [field for field in self.descriptor.fields if writable(field) and field.name != "etag"]

    @property
    def changeable(self) -> list[FieldDescriptor]:
        """The fields of Update's options."""
        return [field for field in self.settable if not immutable(field)]

    @property
    def owned(self) -> bool:
        """Whether objects belong to a project that a client names."""
        return writable(self.descriptor.fields_by_name["project_id"])

    def new(self) -> Any:
        return GetMessageClass(self.descriptor)()

    def request(self, verb: str) -> Any:
        """An empty request of one of the service's methods."""
        return GetMessageClass(self.service.methods_by_name[verb].input_type)()


@cache
def kinds() -> dict[str, Kind]:
    """All kinds of the API by noun. A .proto file added to the package adds its nouns."""
    found: dict[str, Kind] = {}
    for module in sorted(pkgutil.iter_modules(kumihimo.v1.__path__)):
        # store.proto is what stands in etcd: no client sees it.
        if not module.name.endswith("_pb2") or module.name == "store_pb2":
            continue
        file = importlib.import_module(f"{PACKAGE}.{module.name}").DESCRIPTOR
        for name, descriptor in file.message_types_by_name.items():
            options = descriptor.GetOptions()
            if options.HasExtension(resource_pb2.resource):
                resource = options.Extensions[resource_pb2.resource]
                service = "".join(word.capitalize() for word in re.split("[ _-]", resource.plural))
                kind = Kind(name, descriptor, resource, file.services_by_name[service])
                found[kind.noun] = kind
    return found


def kind_named(name: str) -> Kind | None:
    """The kind of a message name ("Network") or noun ("network"); None when this release has no such noun."""
    for kind in kinds().values():
        if name in (kind.name, kind.noun):
            return kind
    return None


def kind_held(field: FieldDescriptor) -> Kind | None:
    """The kind of the objects that a field holds whole; None: it holds none."""
    return kind_named(field.message_type.name) if field.message_type is not None else None


def kind_of(message: Message) -> Kind | None:
    return kind_named(message.DESCRIPTOR.name)


def method(service: str, name: str) -> MethodDescriptor:
    """A method of the API. KeyError when there is none of that name."""
    kinds()
    full = service if "." in service else f"{PACKAGE}.{service}"
    return Default().FindServiceByName(full).methods_by_name[name]
