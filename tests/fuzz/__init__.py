"""Any bytes, for everything that reads what came from elsewhere: `targets` says what, `__main__` how to run it."""
