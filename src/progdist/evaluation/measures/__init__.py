"""Measures computed from features of data and samples; each module cites its method's paper."""
