"""The frozen teachers: which are known by name, where their weights come from, and what they were trained on.

`registry` and `provenance` know teachers without torch; `loading` builds the networks.
"""
