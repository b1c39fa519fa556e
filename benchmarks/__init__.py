"""Measurements that documents quote, each a module that writes its last result beside itself."""
