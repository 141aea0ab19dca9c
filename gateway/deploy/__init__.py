"""`gateway deploy`: prerequisites, files, service, validation; whatever fails is put back as it was."""
