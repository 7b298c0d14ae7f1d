"""The Ray jobs: the only package that imports ray."""
