"""The gRPC server: one generic kernel for every kind of resource."""
