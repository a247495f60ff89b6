"""What is computed from features of data and samples; each module names its method's paper."""
