"""The door to Ray: clusters, and searches that run on them."""
