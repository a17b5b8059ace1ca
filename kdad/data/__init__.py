"""Images: data sets and their splits, custom folders, built-in patterns; reading and changing images.

Imports no other room.
"""
