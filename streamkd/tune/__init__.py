"""Searches over a configuration: the space, the trials and where they run, what came of them."""
