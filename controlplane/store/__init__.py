"""State in etcd: keys, the thin client, watches, the commit. Used by the API, the controllers and the agents' mirror."""
