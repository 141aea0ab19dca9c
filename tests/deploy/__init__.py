"""Tests of deploy/, with tools of their own: see the Makefile, deploy-lint and deploy-image-test."""
