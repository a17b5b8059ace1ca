"""From a student that fails to copy its teacher to scores, p-values and heatmaps.

May import `storage`, `networks` and `data`.
"""
