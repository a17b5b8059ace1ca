"""The frozen teachers and the students that copy them: architectures, recipes, and where each teacher comes from.

May import `data`.
"""
