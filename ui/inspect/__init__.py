"""The page that looks at images through students.

May import the core and `ui.shared`.
"""
