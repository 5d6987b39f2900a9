"""Releases: bounded sums over candidate subsets in, public symbols and their charge out."""
