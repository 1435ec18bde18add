"""Texts as they are: a frozen sentence encoder, a fast student of n-grams, and texts joined for teachers to teach."""
