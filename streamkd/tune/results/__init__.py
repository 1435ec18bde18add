"""What a search came to: the decision, the files, the page, and in words."""
