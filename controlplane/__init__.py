"""The control plane: a stateless gRPC API over etcd, and the controllers that run beside it."""
