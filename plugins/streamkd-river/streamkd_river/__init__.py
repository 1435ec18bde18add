"""River's classifiers as teachers for streamkd, learned record by record."""
