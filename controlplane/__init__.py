"""The control plane: a stateless gRPC API over etcd, and the controllers that run beside it."""

import os

# gRPC's core writes several lines of its own to stderr for each connection that fails; we say it in one.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
