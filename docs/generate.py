"""Makes the reference of API and command line from the .proto files and the command tree: `python -m docs.generate`.

The pages are committed; a test fails when they are not what this makes. What has no comment in a .proto file is a fault.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import click
from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from cli.errors import EXIT_CODES
from cli.kinds import kinds, option_name
from cli.main import root
from kumihimo.v1 import resource_pb2

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
_WIDTH = 100  # columns of the help texts
_NOTE = "<!-- Made by `python -m docs.generate`; not edited by hand. -->\n"
_TYPES = {
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
    FieldDescriptorProto.TYPE_DOUBLE: "double",
}
# Numbers by which descriptor.proto names places in a file.
_MESSAGE, _ENUM, _SERVICE, _EXTENSION, _MEMBER = 4, 5, 6, 7, 2


class Source:
    """One .proto file with its comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self.name = Path(file.name).name
        found = file.source_code_info.location
        self._comments = {tuple(place.path): " ".join(place.leading_comments.split()) for place in found}
        self._heads: dict[tuple[int, ...], Sequence[str]] = {
            tuple(place.path): place.leading_detached_comments for place in found
        }

    def comment(self, *path: int) -> str:
        return self._comments.get(path, "")

    @property
    def about(self) -> str:
        """What stands above the file's first line."""
        heads = self._heads.get((12,), [])
        return " ".join((" ".join(heads) or self.comment(12)).split())

    def parts(self) -> Iterator[tuple[str, str]]:
        """Everything that needs a comment, with the one it has."""
        for number, message in enumerate(self.file.message_type):
            yield message.name, self.comment(_MESSAGE, number)
            for place, field in enumerate(message.field):
                yield f"{message.name}.{field.name}", self.comment(_MESSAGE, number, _MEMBER, place)
        for number, enum in enumerate(self.file.enum_type):
            yield enum.name, self.comment(_ENUM, number)
            for place, value in enumerate(enum.value):
                yield value.name, self.comment(_ENUM, number, _MEMBER, place)
        for number, service in enumerate(self.file.service):
            yield service.name, self.comment(_SERVICE, number)
            for place, method in enumerate(service.method):
                yield f"{service.name}.{method.name}", self.comment(_SERVICE, number, _MEMBER, place)
        for number, extension in enumerate(self.file.extension):
            yield extension.name, self.comment(_EXTENSION, number)


def sources(proto: Path = ROOT / "proto") -> list[Source]:
    """The .proto files below a folder, read by the compiler. SystemExit: one is wrong."""
    import google.api

    files = sorted(str(path) for path in proto.glob("kumihimo/**/*.proto"))
    includes = [proto, resources.files("grpc_tools") / "_proto", Path(next(iter(google.api.__path__))).parent.parent]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = ["protoc", *(f"-I{place}" for place in includes), "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, *files]):
            sys.exit("protoc refused the files above")
        return [Source(file) for file in FileDescriptorSet.FromString(out.read_bytes()).file]


def undocumented(found: list[Source]) -> list[str]:
    """What has no comment: messages, fields, enums, their values, services and methods."""
    return [f"{source.name}: {name}" for source in found for name, comment in source.parts() if not comment]


# -- the API ----------------------------------------------------------------------------------------------------------


def api_page(found: list[Source]) -> str:
    """The page of the API: of each file its services, resources, messages and enums."""
    lines = [
        _NOTE,
        "# API reference\n",
        "gRPC package `kumihimo.v1`, over TLS, with `authorization: Bearer TOKEN`. Errors are `google.rpc.Status` with an"
        " `ErrorInfo` whose reasons [have a page](errors.md). The servers answer gRPC reflection.\n",
    ]
    for source in found:
        if source.name == "store.proto":
            continue  # what stands in etcd: no client sees it
        lines += [f"## {source.name}\n", f"{source.about}\n"]
        for number, service in enumerate(source.file.service):
            lines += _service(source, number, service)
        for number, message in enumerate(source.file.message_type):
            lines += _message(source, number, message)
        for number, enum in enumerate(source.file.enum_type):
            lines += _enum(source, number, enum)
    return "\n".join(lines)


def _service(source: Source, number: int, service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"### service {service.name}\n\n{source.comment(_SERVICE, number)}\n"
    yield "| method | request | reply | |\n|---|---|---|---|"
    for place, method in enumerate(service.method):
        stream = "stream of " if method.server_streaming else ""
        comment = _cell(source.comment(_SERVICE, number, _MEMBER, place))
        yield f"| {method.name} | {_link(method.input_type)} | {stream}{_link(method.output_type)} | {comment} |"
    yield ""


def _message(source: Source, number: int, message: DescriptorProto) -> Iterator[str]:
    yield f"### {message.name}\n\n{source.comment(_MESSAGE, number)}\n"
    if not message.field:
        return
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    yield "| field | type | rules | |\n|---|---|---|---|"
    for place, field in enumerate(message.field):
        comment = _cell(source.comment(_MESSAGE, number, _MEMBER, place))
        yield f"| `{field.name}` = {field.number} | {_type(field, maps)} | {_rules(field)} | {comment} |"
    yield ""


def _enum(source: Source, number: int, enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"### {enum.name}\n\n{source.comment(_ENUM, number)}\n"
    yield "| value | |\n|---|---|"
    for place, value in enumerate(enum.value):
        yield f"| `{value.name}` = {value.number} | {_cell(source.comment(_ENUM, number, _MEMBER, place))} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _link(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})" if name.startswith(".kumihimo.v1.") else name.removeprefix(".")


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        return f"map of {_type(entry.field[0], {})} to {_type(entry.field[1], {})}"
    one = _TYPES.get(field.type) or _link(field.type_name)
    many = field.label == FieldDescriptorProto.LABEL_REPEATED
    return f"repeated {one}" if many else f"optional {one}" if field.proto3_optional else one


def _rules(field: FieldDescriptorProto) -> str:
    """What the kernel checks, in words."""
    extensions: Any = field.options.Extensions
    behaviors, known = extensions[field_behavior_pb2.field_behavior], extensions[resource_pb2.rules]
    said = [field_behavior_pb2.FieldBehavior.Name(behavior).lower().replace("_", " ") for behavior in behaviors]
    if known.format:
        said.append(resource_pb2.Format.Name(known.format).removeprefix("FORMAT_").replace("_", " ").lower())
    if known.reference:
        said.append(f"id of a {known.reference}")
    if known.HasField("minimum") or known.HasField("maximum"):
        said.append(f"{known.minimum} to {known.maximum}")
    if known.max_length:
        said.append(f"at most {known.max_length} characters")
    if known.max_items:
        said.append(f"at most {known.max_items} entries")
    if known.set:
        said.append("a set")
    if known.unique:
        said.append("no entry twice" if known.unique == "*" else f"no {known.unique} twice")
    for flag, words in (("operator_only", "operators only"), ("unsupported", "not yet acted upon"), ("secret", "secret")):
        if getattr(known, flag):
            said.append(words)
    return ", ".join(said)


# -- the command line -------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """The page of the command line: every command with its help, and what fields are called in files."""
    lines = [_NOTE, "# Command line reference\n", f"Exit codes: {EXIT_CODES}.\n"]
    for path, context in _commands(root, _context(root, "kumi")):
        lines.append(f"## {path}\n\n```\n{context.get_help().rstrip()}\n```\n")
    lines.append("## Fields in files\n")
    lines.append(
        "What `kumi apply` reads and `kumi export` writes: fields by these names, or by the second where there is one.\n"
    )
    for kind in kinds().values():
        names = []
        for field in kind.settable:
            short = option_name(field).replace("-", "_")
            names.append(f"`{field.name}`" if short == field.name else f"`{field.name}` (`{short}`)")
        lines.append(f"- **{kind.noun}**: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    # Those below have them from the root.
    helps = None if parent else list(root.context_settings["help_option_names"])
    return click.Context(command, parent, name, help_option_names=helps, terminal_width=_WIDTH, max_content_width=_WIDTH)


def _commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Context]]:
    yield context.command_path, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, f"{name} is listed"
            yield from _commands(child, _context(child, name, context))


def pages() -> dict[Path, str]:
    """Every page that is made, with its text."""
    # Help is the same whatever shell asks for it.
    for name in ("KUMI_PROFILE", "KUMI_PROJECT"):
        os.environ.pop(name, None)
    return {PAGES / "api.md": api_page(sources()), PAGES / "cli.md": cli_page()}


def main(arguments: Sequence[str]) -> None:
    """Write the pages; with `--check` only say which are stale, by SystemExit."""
    stale = [page for page, text in pages().items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        sys.exit("stale, run `python -m docs.generate`: " + ", ".join(page.name for page in stale) if stale else 0)
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
