"""What may differ between trials: places of the configuration tree, and what each may be."""
