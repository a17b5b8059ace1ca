"""The page of curves and results.

May import the core and `ui.shared`.
"""
