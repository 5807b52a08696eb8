"""Training and testing interatomic potentials on datasets."""
