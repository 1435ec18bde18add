"""What a search came to: the verdict, the files, the page, and in words."""
