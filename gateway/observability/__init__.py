"""What operators see: figures of requests and engines."""
