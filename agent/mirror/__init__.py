"""The node's part of the state in etcd: what is watched, and the values it holds."""
