"""Plans: a snapshot in, decisions out."""
