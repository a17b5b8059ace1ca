"""Code shared by the pages: layout, student index, wording, colours and pictures.

May import the core, but no page.
"""
