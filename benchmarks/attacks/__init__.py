"""What kdad is broken with on purpose: each attack is seeded, so that what it finds can be found again."""
