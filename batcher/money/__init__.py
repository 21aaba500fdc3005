"""The ledger and everything that reads or settles it."""
