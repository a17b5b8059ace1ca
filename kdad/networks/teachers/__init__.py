"""Frozen teachers: names, sources of the weights, and training data.

`registry` and `provenance` work without torch; `loading` builds the networks.
"""
