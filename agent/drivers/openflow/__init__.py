"""Flows and groups of one bridge over OpenFlow 1.5: field table, codec, connection, driver."""
