"""A stranger's plugin: a teacher and a loss, each in a file of its own."""
