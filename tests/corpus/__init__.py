"""Other people's code as test material: it must do the same with every function instrumented."""
