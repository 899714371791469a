// dominance
