"""How far accuracy survives a change of the images."""
