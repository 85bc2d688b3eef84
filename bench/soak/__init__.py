"""A soak: random jobs, stops, followers and kills for a time, and every byte accounted for."""
