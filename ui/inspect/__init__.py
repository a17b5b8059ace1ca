"""The page for inspecting images.

May import the core and `ui.shared`.
"""
