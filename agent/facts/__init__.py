"""What the host says: Open vSwitch interfaces, addresses."""

import sys

# ovs takes up eventlet where somebody else has installed it: 9 MB, for a loop that is not ours.
sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]
