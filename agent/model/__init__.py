"""Values that compile returns and drivers apply. No behaviour, no I/O."""
