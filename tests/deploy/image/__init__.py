"""The real image and the real Compose file, on buildah and podman."""
