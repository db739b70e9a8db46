"""`--explain`: where the time and the energy of a run go, and what would change them."""
