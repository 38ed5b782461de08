"""Make a network and list all: `python networks.py HOST:PORT CA_FILE TOKEN_FILE [NAME_IN_CERTIFICATE]`."""

import sys
from pathlib import Path

import grpc

from kumihimo.v1 import network_pb2, network_pb2_grpc, resource_pb2

endpoint, ca, token, *name = sys.argv[1:]
metadata = [("authorization", f"Bearer {Path(token).read_text().strip()}")]
options = [("grpc.ssl_target_name_override", name[0])] if name else []
with grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(Path(ca).read_bytes()), options) as channel:
    networks = network_pb2_grpc.NetworksStub(channel)
    wanted = network_pb2.Network(name="from-python", tags=["example"])
    networks.Create(network_pb2.CreateNetworkRequest(resource=wanted, request_id="example-1"), metadata=metadata)
    for network in networks.List(resource_pb2.ListRequest(filter='tags:"example"'), metadata=metadata).items:
        print(network.id, network.name, network.mtu)
