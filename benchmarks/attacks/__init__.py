"""Attacks that try to break kdad; each is seeded, to make its findings reproducible."""
