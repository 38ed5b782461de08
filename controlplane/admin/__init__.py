"""Commands for who operates the control plane: they act on etcd or its files, not through the API."""
