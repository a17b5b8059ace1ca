"""Frozen teachers and the students that copy them: architectures, recipes, and the teachers' sources.

May import `data`.
"""
