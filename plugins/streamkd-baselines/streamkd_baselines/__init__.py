"""Gates and losses of the literature, to set beside streamkd's own."""
