"""What the pages share: the frame, students that are here, words, colours and pictures.

May import the core, and no page.
"""
