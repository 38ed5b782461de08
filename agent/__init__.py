"""The node agent: makes one host's Open vSwitch, namespaces and daemons equal to what etcd says."""
