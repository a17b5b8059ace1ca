"""The page that trains and loads students.

May import the core and `ui.shared`.
"""
