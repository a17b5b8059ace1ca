"""The home page.

May import the core and `ui.shared`.
"""
