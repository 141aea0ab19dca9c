"""Who may call, and how much one request may ask for."""
