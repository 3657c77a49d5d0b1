"""How reports of many participants become one model: folds, server optimisers, strategies. NumPy alone."""
