"""The demonstration: scanned digits, read row by row by a network of delayed synapses."""
