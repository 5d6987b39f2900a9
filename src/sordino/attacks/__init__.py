"""Attacks: scores that tell members from others, and what a model gives away by itself.

An attack gives scores or findings; what they prove is computed in `sordino.auditing`.
"""
