"""What needs no container: files against their linters, schemas and each other. Seconds."""
