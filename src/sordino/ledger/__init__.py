"""Ledger, sealed journal, transcript and certificate: records that others can recompute."""
