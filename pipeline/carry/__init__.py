"""Columns of INPUT that `images` carries along: their types, and their values on the way."""
