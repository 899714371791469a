// largest_subgroup
