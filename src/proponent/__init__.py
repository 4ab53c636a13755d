"""Which training data made this model behave as it does?"""
