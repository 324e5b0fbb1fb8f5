"""What the machine and its terminal give: memory, files, progress, words for numbers."""
