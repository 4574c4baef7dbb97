"""What people use: the clamp3 command, the search page, previews and maps."""
