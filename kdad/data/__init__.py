"""What images are: data sets and their splits, own folders, built-in patterns; reading and changing images.

Imports no other room.
"""
