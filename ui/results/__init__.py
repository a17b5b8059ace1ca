"""The page for curves and results.

May import the core and `ui.shared`.
"""
