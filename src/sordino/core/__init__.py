"""Errors, checks, secret entropy and public directions: the two kinds of randomness never mix."""
