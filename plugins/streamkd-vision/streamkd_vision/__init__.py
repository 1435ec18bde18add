"""Image networks as teachers for streamkd, and attention transfer from their layers."""
