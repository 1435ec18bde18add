"""Searches over a configuration: the space, the trials, the ledger, the engine that needs nothing but this process."""
