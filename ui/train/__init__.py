"""The page for training and loading students.

May import the core and `ui.shared`.
"""
