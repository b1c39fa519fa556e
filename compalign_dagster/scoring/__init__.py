"""Rewards for pairs, shard by shard, and the ledger that folds them."""
