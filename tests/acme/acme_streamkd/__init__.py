"""A stranger's plugin: a teacher, a loss and a source of rows, each in a file of its own."""
