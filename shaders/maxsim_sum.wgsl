// maxsim_sum
