"""What each kind of resource adds to the kernel: its defaults, its checks, the values it claims. One module per family.

`RULES` is the whole list. Rules are pure functions over a transaction (which reads the cache) and messages.
"""

from __future__ import annotations

from controlplane.services.base import Rules
from controlplane.services.network import NetworkRules
from controlplane.services.node import NodeRules
from controlplane.services.pool import AddressScopeRules, SubnetPoolRules
from controlplane.services.port import PortRules
from controlplane.services.quota import QuotaRules
from controlplane.services.rule import DefaultSecurityGroupRuleRules, SecurityGroupRuleRules
from controlplane.services.security import AddressGroupRules, SecurityGroupRules
from controlplane.services.segment import NetworkSegmentRangeRules, PhysicalNetworkRules
from controlplane.services.settings import SettingsRules
from controlplane.services.subnet import SubnetRules

RULES: dict[str, Rules] = {
    rules.kind: rules
    for rules in (
        NetworkRules(),
        SubnetRules(),
        PortRules(),
        NodeRules(),
        QuotaRules(),
        SettingsRules(),
        PhysicalNetworkRules(),
        NetworkSegmentRangeRules(),
        AddressScopeRules(),
        SubnetPoolRules(),
        SecurityGroupRules(),
        SecurityGroupRuleRules(),
        AddressGroupRules(),
        DefaultSecurityGroupRuleRules(),
    )
}
