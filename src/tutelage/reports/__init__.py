"""One self-contained page from what runs recorded."""
