"""What answers: one file per endpoint."""
