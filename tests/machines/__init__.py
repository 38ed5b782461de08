"""Kumihimo on real hosts: virtual machines with systemd and the kernel's own Open vSwitch datapath (`tests/machines/run`)."""
