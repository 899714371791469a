// maxsim
