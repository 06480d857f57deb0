"""How kernels are launched: settings as data, chosen by a heuristic unless given."""
