"""Set-up, lab, demo and service units: what runs Kumihimo, none of what it is."""
