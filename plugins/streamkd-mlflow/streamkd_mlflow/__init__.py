"""Streams as runs of MLflow: metrics, tasks and published versions."""
