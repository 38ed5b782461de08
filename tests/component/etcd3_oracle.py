"""The package `python3-etcd3` behind a pipe: JSON lines in, JSON lines out. A program of its own, because its generated
messages and those of our client define the same names and cannot live in one process.

usage: etcd3_oracle.py unix:/path/to/localhost 2379 [CA CERTIFICATE KEY]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import etcd3
import grpc

SECONDS = 20


def compare_of(client: Any, compare: list[Any]) -> Any:
    target, key, end, operator, value = compare
    made = getattr(client.transactions, target)(key, end.encode("latin-1") if end else None)
    return made < value if operator == "<" else made == value


def answer(client: Any, request: dict[str, Any]) -> Any:
    match request["op"]:
        case "read":
            found = client.get_all() if not request["prefix"] else client.get_prefix(request["prefix"])
            return [[meta.key.decode(), value.decode(), meta.create_revision, meta.mod_revision] for value, meta in found]
        case "put":
            return client.put(request["key"], request["value"], lease=request.get("lease")).header.revision
        case "delete":
            return client.delete(request["key"])
        case "transact":
            compare = [compare_of(client, item) for item in request["compare"]]
            success = [client.transactions.put(key, value) for key, value in request["puts"]]
            return client.transaction(compare=compare, success=success, failure=[])[0]
        case "compact":
            return client.compact(request["revision"])
        case "lease":
            return client.lease(request["ttl"]).id
        case "remaining":
            return client.get_lease_info(request["lease"]).TTL
        case "events":
            found, cancel = client.watch_prefix(request["prefix"], start_revision=request["since"])
            events = []
            for event in found:
                gone = isinstance(event, etcd3.events.DeleteEvent)
                events.append([event.key.decode(), None if gone else event.value.decode(), event.mod_revision])
                if event.mod_revision >= request["until"]:
                    break
            cancel()
            return events
    raise ValueError(request)


def main() -> None:
    host, port, *files = sys.argv[1:]
    options = [("grpc.default_authority", "etcd"), ("grpc.ssl_target_name_override", "etcd")]
    credentials = None
    if files:
        ca, certificate, key = (Path(name).read_bytes() for name in files)
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    endpoint = etcd3.Endpoint(host, int(port), secure=bool(files), creds=credentials, opts=options)
    client = etcd3.MultiEndpointEtcd3Client(endpoints=[endpoint], timeout=SECONDS)
    for line in sys.stdin:
        print(json.dumps(answer(client, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
