"""Scores, p-values, verdicts and heatmaps from a student and its teacher.

May import `storage`, `networks` and `data`.
"""
