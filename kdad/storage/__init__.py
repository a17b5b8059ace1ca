"""Storage of students: folder, configuration, history and card, on disk and on the Hub.

May import `networks` and `data`.
"""
