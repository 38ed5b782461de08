"""What the host says: Open vSwitch interfaces, addresses."""
