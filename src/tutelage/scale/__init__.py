"""Work that falls into units, done here or by workers elsewhere."""
