"""Who used how much, and which admin did what."""
