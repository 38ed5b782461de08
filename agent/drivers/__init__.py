"""Make reality equal to items; decide nothing."""
